"""Quantized layers.

    y = layer(Q_a(x); dequantize(w_int), b)

Q_a is static, with one grid for the tensor or for each part of a concatenation; b stays in floating point. The dequantized
weight is computed once and kept, so a call costs one rounding of the input. The buffers of quantization are not in
`state_dict()`: what is saved is packed, see `checkpoint`.
"""

from typing import Any, Literal

import torch
from torch import Tensor, nn

from qdexp.quant.affine import QParams, dequantize, fake_quantize, fake_quantize_learned, qparams_from_range
from qdexp.quant.ranges import Observer, RangeEstimator
from qdexp.quant.scheme import Scheme

Mode = Literal["off", "observe", "on"]


class ActivationQuantizer(nn.Module):
    """Rounds what passes through to the grid of `scheme`.

    `mode` is "off" (values pass untouched: the start), "observe" (they pass, and are shown to the observer) or "on".
    With `fixed_range` the grid is known beforehand and never observed.
    """

    scale: Tensor
    zero_point: Tensor

    def __init__(self, scheme: Scheme, fixed_range: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.scheme = scheme
        self.fixed = fixed_range is not None
        self.mode: Mode = "off"
        self.groups = scheme.granularity.groups(())  # no shape is known here: activations have no group for each channel
        self.observer: Observer | None = None
        lo, hi = (torch.full((sum(self.groups),), end) for end in fixed_range or (0.0, 0.0))
        qparams = qparams_from_range(lo, hi, scheme)
        self.register_buffer("scale", qparams.scale, persistent=False)
        self.register_buffer("zero_point", qparams.zero_point, persistent=False)

    def forward(self, x: Tensor) -> Tensor:
        """x, any shape -> the same shape, dtype and strides."""
        if self.mode == "on":
            learning = self.scale.requires_grad or x.requires_grad  # what was quantized before may be learned through this one
            quantize = fake_quantize_learned if learning else fake_quantize
            return quantize(x, QParams(self.scale, self.zero_point), self.scheme)
        if self.mode == "observe" and self.observer is not None:
            self.observer.observe(x)
        return x

    def start(self, estimator: RangeEstimator) -> Observer:
        """Begin to observe."""
        self.observer, self.mode = Observer(estimator, self.scheme, self.groups), "observe"
        return self.observer

    def finish(self) -> None:
        """Take over the range observed, and round from now on."""
        if self.observer is not None:
            self.set_qparams(qparams_from_range(*self.observer.range(), self.scheme))
        self.observer, self.mode = None, "on"

    def set_qparams(self, qparams: QParams) -> None:
        """Round to this grid, once `mode` is "on". Each of scale and zero point is [groups]."""
        self.scale.copy_(qparams.scale)
        self.zero_point.copy_(qparams.zero_point)

    def extra_repr(self) -> str:
        """What `print(network)` shows."""
        return f"bits={self.scheme.bits}, symmetric={self.scheme.symmetric}, mode={self.mode}"


def quantizer_or_identity(scheme: Scheme | None, fixed_range: tuple[float, float] | None = None) -> nn.Module:
    """An activation quantizer, or nothing where values stay unquantized (scheme None)."""
    return nn.Identity() if scheme is None else ActivationQuantizer(scheme, fixed_range)


class QuantizedLayer(nn.Module):
    """What every quantized layer has beside its torch class.

    `weight` is the float parameter until `set_weight` replaces it by a buffer with the dequantized values; `weight_int` and
    `weight_qparams` are None until then, and for ever where `weight_scheme` is None.
    """

    weight: Tensor
    weight_int: Tensor | None
    weight_scale: Tensor | None
    weight_zero_point: Tensor | None
    weight_scheme: Scheme | None
    input_quantizer: nn.Module

    def forward(self, x: Tensor) -> Tensor:
        """The layer of torch, applied to the quantized input."""
        y: Tensor = super().forward(self.input_quantizer(x))
        return y

    @property
    def weight_qparams(self) -> QParams | None:
        """The grid of the weight, [groups] each."""
        if self.weight_scale is None or self.weight_zero_point is None:
            return None
        return QParams(self.weight_scale, self.weight_zero_point)

    @torch.no_grad()
    def set_weight(self, integers: Tensor, qparams: QParams) -> None:
        """Compute with these integers from now on; dtype, device and strides of the float weight are kept."""
        assert self.weight_scheme is not None
        weight = torch.empty_like(self.weight).copy_(dequantize(integers, qparams, self.weight_scheme))
        del self.weight
        self.register_buffer("weight", weight, persistent=False)
        self.weight_int = integers
        self.weight_scale, self.weight_zero_point = qparams


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """A quantized `torch.nn.Conv1d`."""


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A quantized `torch.nn.Conv2d`."""


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A quantized `torch.nn.Linear`."""


QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
}


def to_quantized(layer: nn.Module, weight: Scheme | None, act: Scheme | None) -> QuantizedLayer:
    """Turn a Conv1d, Conv2d or Linear into its quantized class, weight still float and input quantizer off.

    The object itself changes class, as in torch's parametrizations: options, hooks, memory format and identity stay.
    """
    quantized: Any = layer
    quantized.__class__ = QUANTIZED[type(layer)]
    quantized.weight_scheme = weight
    quantized.input_quantizer = quantizer_or_identity(act).to(quantized.weight.device)
    for name in ("weight_int", "weight_scale", "weight_zero_point"):
        quantized.register_buffer(name, None, persistent=False)
    result: QuantizedLayer = quantized
    return result
