from collections.abc import Callable

import pytest
import torch
from quant_helpers import observed, qparams_of
from torch import nn

from qdexp.quant import (
    MinMax,
    PerChannel,
    PerTensor,
    Scheme,
    Split,
    fake_quantize,
)
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.layers import to_quantized

Layer = nn.Conv1d | nn.Conv2d | nn.Linear
LAYERS: dict[str, tuple[Callable[[], Layer], tuple[int, ...]]] = {
    "conv1d": (lambda: nn.Conv1d(4, 6, 3, padding=1, stride=2), (2, 4, 9)),
    "conv2d": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2, bias=False), (2, 4, 5, 5)),
    "reflect": (lambda: nn.Conv2d(4, 6, 3, padding=1, padding_mode="reflect"), (2, 4, 5, 5)),
    "linear": (lambda: nn.Linear(4, 6), (2, 3, 4)),
}


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
def test_computes_with_rounded_weight_and_input(kind: str, bits: int, symmetric: bool) -> None:
    make, shape = LAYERS[kind]
    layer, x = make(), torch.randn(shape)
    reference = make()
    reference.load_state_dict(layer.state_dict())
    weight_scheme, act_scheme = Scheme(bits, PerChannel(), symmetric), Scheme(8)
    weight_qparams, act_qparams = qparams_of(layer.weight, weight_scheme), qparams_of(x, act_scheme)
    expected_input = fake_quantize(x, act_qparams, act_scheme)
    reference.weight.data = fake_quantize(layer.weight.data, weight_qparams, weight_scheme)

    quantized = to_quantized(layer, weight_scheme, act_scheme)
    quantized.set_weight(nearest(quantized.weight, weight_qparams, weight_scheme), weight_qparams)
    assert torch.equal(quantized(x), reference(x))  # input quantizer still off
    assert isinstance(quantized.input_quantizer, ActivationQuantizer)
    quantized.input_quantizer.set_qparams(act_qparams)
    quantized.input_quantizer.mode = "on"
    assert torch.equal(quantized(x), reference(expected_input))
    assert not torch.equal(quantized(x), quantized(x * 1.1))


def test_32_bits_leave_a_layer_alone() -> None:
    layer, x = nn.Linear(3, 3), torch.randn(2, 3)
    expected = layer(x)
    quantized = to_quantized(layer, None, None)
    assert torch.equal(quantized(x), expected)
    assert isinstance(quantized.weight, nn.Parameter)


def test_class_hooks_memory_format_and_state() -> None:
    layer = nn.Conv2d(4, 6, 3).to(memory_format=torch.channels_last)
    strides, calls = layer.weight.stride(), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    scheme = Scheme(4, PerChannel())
    quantized = to_quantized(layer, scheme, Scheme(8))
    qparams = qparams_of(quantized.weight, scheme)
    quantized.set_weight(nearest(quantized.weight, qparams, scheme).contiguous(), qparams)
    assert isinstance(quantized, nn.Conv2d)
    assert quantized.weight.stride() == strides
    assert quantized(torch.randn(1, 4, 5, 5).to(memory_format=torch.channels_last)).stride()[1] == 1
    assert calls == [1]
    assert set(quantized.state_dict()) == {"weight", "bias"}
    assert [name for name, _ in quantized.named_parameters()] == ["bias"]


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel()])
def test_a_bimodal_input_loses_far_less_in_parts(granularity: PerTensor | PerChannel) -> None:
    gain, sizes = 64, (10, 6)
    x, float_layer = torch.randn(4, 16, 6, 6), nn.Conv2d(16, 8, 1)
    x[:, :10] *= gain
    float_layer.weight.data[:, :10] /= gain  # both parts count for the output as much as they did
    expected = float_layer(x)

    def error(bits: tuple[int, int], split: bool) -> float:
        layer, schemes = nn.Conv2d(16, 8, 1), []
        layer.load_state_dict(float_layer.state_dict())
        for bit, within in zip(bits, (granularity, PerTensor()), strict=True):
            schemes.append(None if bit == 32 else Scheme(bit, Split(sizes, within) if split else within))
        weight_scheme, act_scheme = schemes
        quantized = to_quantized(layer, weight_scheme, act_scheme)
        if weight_scheme is not None:
            qparams = qparams_of(quantized.weight, weight_scheme)
            quantized.set_weight(nearest(quantized.weight, qparams, weight_scheme), qparams)
        if act_scheme is not None:
            quantized.input_quantizer = observed(act_scheme, MinMax(), [x])
        return ((quantized(x) - expected).norm() / expected.norm()).item()

    for bits in ((32, 8), (4, 32), (4, 8)):
        assert error(bits, split=True) < 0.25 * error(bits, split=False)
