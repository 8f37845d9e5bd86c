from typing import Any

import pytest
import torch
from diffusers.models.attention_processor import (
    Attention,
    AttnAddedKVProcessor,
    AttnAddedKVProcessor2_0,
    AttnProcessor,
    AttnProcessor2_0,
    SlicedAttnProcessor,
)

from qdexp.errors import UserError
from qdexp.quant import MinMax, Scheme
from qdexp.quant.adapter import Adapter
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


def quantize(attention: Attention, call: dict[str, Any], act: Scheme | None, softmax: Scheme | None) -> None:
    """What it multiplies in this call."""
    (site,) = Adapter(attention, [call]).sites.values()
    quantize_attention(attention, site.products, act, softmax)


@torch.inference_mode()
@pytest.mark.parametrize("kind", CALLS)
def test_in_float_it_is_diffusers_own_attention(kind: str, caplog: pytest.LogCaptureFixture) -> None:
    attention, call = pair(kind)
    expected = attention(**call)
    quantize(attention, call, Scheme(8), Scheme(8))
    assert len(list(activation_quantizers(attention))) == 4
    result = attention(**call)
    torch.testing.assert_close(result, expected, rtol=1e-5, atol=1e-5)
    assert result.stride() == expected.stride()
    assert not caplog.records


@torch.inference_mode()
def test_a_boolean_mask_is_that_of_the_fused_kernel() -> None:
    attention, call = pair("cross_mask")
    call = call | {"attention_mask": MASK == 0}
    expected = attention(**call)
    quantize(attention, call, None, None)
    torch.testing.assert_close(attention(**call), expected, rtol=1e-5, atol=1e-5, equal_nan=True)


FUSED = [f"quantized_products.0.{name}" for name in ("query", "key", "value", "probability")]
BY_HAND = [f"quantized_products.{number}.{side}" for number in range(2) for side in ("left", "right")]
KNOWN = {"quantized_products.0.probability", "quantized_products.1.left"}
"""What reads softmaxes."""
PROCESSORS: dict[str, tuple[Any, dict[str, Any], list[str]]] = {
    "by hand": (AttnProcessor(), {}, BY_HAND),
    "fused": (AttnProcessor2_0(), {}, FUSED),
    "added, by hand": (AttnAddedKVProcessor(), {"added_kv_proj_dim": 12}, BY_HAND),
    "added, fused": (AttnAddedKVProcessor2_0(), {"added_kv_proj_dim": 12}, FUSED),
}


@torch.no_grad()
@pytest.mark.parametrize("name", PROCESSORS)
def test_whoever_multiplies_is_quantized(name: str) -> None:
    """Diffusers' processors have little in common."""
    processor, options, expected = PROCESSORS[name]
    attention = Attention(**UNET | options, processor=processor).eval()
    call = {"hidden_states": IMAGE} | ({"encoder_hidden_states": CONTEXT} if options else {})
    before = attention(**call)
    quantize(attention, call, Scheme(8), Scheme(8))
    torch.testing.assert_close(attention(**call), before, rtol=1e-5, atol=1e-5)
    named = dict(activation_quantizers(attention))
    assert list(named) == expected
    assert [name for name, quantizer in named.items() if quantizer.fixed] == [name for name in expected if name in KNOWN]
    observe_activations(attention, [[call]], MinMax())
    error = (attention(**call) - before).norm() / before.norm()
    assert 0 < error < 0.02


def calibrated(kind: str, act: Scheme, softmax: Scheme | None) -> tuple[Attention, dict[str, Any], torch.Tensor]:
    attention, call = pair(kind)
    with torch.inference_mode():
        expected = attention(**call)
    quantize(attention, call, act, softmax)
    observe_activations(attention, [[call]], MinMax())
    return attention, call, expected


@pytest.mark.parametrize("kind", ["unet", "cross_mask", "qk_norm"])
def test_more_bits_come_closer(kind: str) -> None:
    errors = []
    for bits in (3, 5, 8):
        attention, call, expected = calibrated(kind, Scheme(bits), Scheme(bits))
        with torch.inference_mode():
            result = attention(**call)
        errors.append(((result - expected).norm() / expected.norm()).item())
    assert errors[0] > 2 * errors[1] > 4 * errors[2] > 0
    assert errors[2] < 0.02


def test_quantizers_have_names_and_act_on_q_k_v_and_probability() -> None:
    attention, call, _ = calibrated("cross", Scheme(8), Scheme(16))
    named = dict(activation_quantizers(attention))
    assert list(named) == [f"quantized_products.0.{name}" for name in ("query", "key", "value", "probability")]
    assert named["quantized_products.0.probability"].scheme.bits == 16
    outputs = []
    with torch.inference_mode():
        for quantizer in named.values():
            set_activation_mode(attention, "off")
            quantizer.mode = "on"
            outputs.append(attention(**call))
        set_activation_mode(attention, "off")
        off = attention(**call)
    assert all(not torch.equal(output, off) for output in outputs)


@torch.inference_mode()
@pytest.mark.parametrize("other", [AttnProcessor(), SlicedAttnProcessor(1)])
def test_a_call_that_multiplies_otherwise_is_refused_in_words(other: Any) -> None:
    attention, call = pair("unet")
    quantize(attention, call, Scheme(8), Scheme(8))
    attention.set_processor(other)
    with pytest.raises(UserError, match=r"^model\.network: the attention in QuantizedAttention .*quant\.layers$") as refusal:
        attention(**call)
    assert "\n" not in str(refusal.value)
