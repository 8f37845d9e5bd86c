from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import Attention, AttnAddedKVProcessor, AttnProcessor, AttnProcessor2_0

from qdexp.errors import UserError
from qdexp.quant import MinMax, Scheme
from qdexp.quant.attention import quantize_attention
from qdexp.quant.network import activation_quantizers, observe_activations, set_activation_mode

UNET: dict[str, Any] = {
    "query_dim": 16,
    "heads": 2,
    "dim_head": 8,
    "rescale_output_factor": 1.5,
    "norm_num_groups": 4,
    "residual_connection": True,
    "bias": True,
    "upcast_softmax": True,
}
CROSS: dict[str, Any] = {"query_dim": 16, "cross_attention_dim": 12, "heads": 2, "dim_head": 8}
torch.manual_seed(0)
IMAGE, TOKENS, CONTEXT = torch.randn(3, 16, 4, 4), torch.randn(3, 10, 16), torch.randn(3, 5, 12)
MASK = torch.where(torch.rand(3, 1, 5) < 0.4, -10_000.0, 0.0)
MASK[:, :, 0] = 0  # a query that may attend to nothing has no defined answer
CALLS: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "unet": (UNET, {"hidden_states": IMAGE}),
    "unet_channels_last": (UNET, {"hidden_states": IMAGE.to(memory_format=torch.channels_last)}),
    "cross": (CROSS, {"hidden_states": TOKENS, "encoder_hidden_states": CONTEXT}),
    "cross_mask": (CROSS, {"hidden_states": TOKENS, "encoder_hidden_states": CONTEXT, "attention_mask": MASK}),
    "cross_norm": (CROSS | {"cross_attention_norm": "layer_norm"}, {"hidden_states": TOKENS, "encoder_hidden_states": CONTEXT}),
    "self": (CROSS | {"cross_attention_dim": None}, {"hidden_states": TOKENS}),
    "qk_norm": (CROSS | {"qk_norm": "layer_norm"}, {"hidden_states": TOKENS, "encoder_hidden_states": CONTEXT}),
    "upcast": (CROSS | {"upcast_attention": True}, {"hidden_states": TOKENS, "encoder_hidden_states": CONTEXT}),
    "unscaled": (CROSS | {"scale_qk": False}, {"hidden_states": TOKENS, "encoder_hidden_states": CONTEXT}),
    "spatial_norm": (
        UNET | {"query_dim": 32, "spatial_norm_dim": 4},
        {"hidden_states": torch.randn(3, 32, 4, 4), "temb": torch.randn(3, 4, 2, 2)},
    ),
}


def pair(kind: str) -> tuple[Attention, dict[str, Any]]:
    options, call = CALLS[kind]
    torch.manual_seed(0)
    attention = Attention(**options).eval()
    for parameter in attention.parameters():  # norms too must matter
        parameter.data += 0.3 * torch.randn_like(parameter)
    return attention, call


@torch.inference_mode()
@pytest.mark.parametrize("kind", CALLS)
def test_in_float_it_is_diffusers_own_attention(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    attention, call = pair(kind)
    expected = attention(**call)
    quantize_attention(attention, Scheme(8), Scheme(8))
    result = attention(**call)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert result.stride() == expected.stride()
    assert not caplog.records


@torch.inference_mode()
def test_a_boolean_mask_is_that_of_the_fused_kernel() -> None:
    attention, call = pair("cross_mask")
    call = call | {"attention_mask": MASK == 0}
    expected = attention(**call)
    quantize_attention(attention, None, None)
    torch.testing.assert_close(attention(**call), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


@torch.inference_mode()
@pytest.mark.parametrize("processor", [AttnProcessor(), AttnProcessor2_0()])
def test_both_default_processors_are_replaced(processor: Any) -> None:
    attention, call = pair("unet")
    attention.set_processor(processor)
    expected = attention(**call)
    quantize_attention(attention, None, None)
    torch.testing.assert_close(attention(**call), expected, rtol=1e-5, atol=1e-5)


def calibrated(kind: str, act: Scheme, softmax: Scheme | None) -> tuple[Attention, dict[str, Any], torch.Tensor]:
    attention, call = pair(kind)
    with torch.inference_mode():
        expected = attention(**call)
    quantize_attention(attention, act, softmax)
    attention.forward_tensors, attention.forward = attention.forward, lambda *_: attention.forward_tensors(**call)
    observe_activations(attention, [(torch.empty(0),)], MinMax())
    return attention, call, expected


@pytest.mark.parametrize("kind", ["unet", "cross_mask", "qk_norm"])
def test_more_bits_come_closer(kind: str) -> None:
    errors = []
    for bits in (3, 5, 8):
        attention, call, expected = calibrated(kind, Scheme(bits), Scheme(bits))
        with torch.inference_mode():
            result = attention.forward_tensors(**call)
        errors.append(((result - expected).norm() / expected.norm()).item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert errors[2] < 0.02


def test_quantizers_have_names_and_act_on_q_k_v_and_probability() -> None:
    attention, call, _ = calibrated("cross", Scheme(8), Scheme(16))
    named = dict(activation_quantizers(attention))
    assert list(named) == [f"processor.{name}" for name in ("query", "key", "value", "probability")]
    assert named["processor.probability"].scheme.bits == 16
    outputs = []
    with torch.inference_mode():
        for quantizer in named.values():
            set_activation_mode(attention, "off")
            quantizer.mode = "on"
            outputs.append(attention.forward_tensors(**call))
        set_activation_mode(attention, "off")
        off = attention.forward_tensors(**call)
    assert all(not torch.equal(output, off) for output in outputs)


def test_special_attention_is_refused_in_words() -> None:
    attention = Attention(query_dim=16, added_kv_proj_dim=12, heads=2, dim_head=8, processor=AttnAddedKVProcessor())
    with pytest.raises(UserError, match=r"AttnAddedKVProcessor.*quant\.layers"):
        quantize_attention(attention, Scheme(8), Scheme(8))
