"""Layers whose products are those of integers.

A quantized layer that becomes one keeps its name, hooks, transforms and branch; it rounds its input to the same levels, and
hands these to a kernel that has the integers of its weight. Its floating point weight goes.
"""

from abc import abstractmethod
from typing import Any, cast

import torch
from torch import Tensor, nn

from qdexp.backends.integer.factors import Factor, factors_of
from qdexp.backends.integer.kernels import Convolution, Linear, Window, if_broken, levels
from qdexp.quant.affine import QParams, dequantize, grid_of, qparams_of_rows
from qdexp.quant.dynamic import LEAST, by_row
from qdexp.quant.granularity import PerGroup, whole
from qdexp.quant.layers import ActivationQuantizer, QuantizedLayer, is_whole
from qdexp.quant.scheme import Scheme

BITS = 8
"""Of a factor, at most."""
CENTRE = 2 ** (BITS - 1)
SUMS = 2**31
"""What an int32 does not hold any more."""


class IntegerLayer(QuantizedLayer):
    """What both kinds have in common."""

    input_quantizer: ActivationQuantizer
    bias: Tensor | None
    weight_dtype: torch.dtype
    """Of the weight that it had."""

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """The layer of torch, applied to the quantized input."""
        x = self.transformed(input)
        y: Tensor = self.product(x).to(x.dtype)
        return y if self.branch is None else y + cast(Tensor, self.branch(x, self))

    @abstractmethod
    def prepare(self, factors: list[Factor]) -> None:
        """Lay out the weight for its kernels."""

    @abstractmethod
    def product(self, x: Tensor) -> Tensor:
        """The weight times what the input quantizer makes of x, and the bias: float32."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """What the integers stand for, computed each time."""
        assert self.weight_int is not None and self.weight_qparams is not None and self.weight_scheme is not None
        return dequantize(self.weight_int, self.weight_qparams, self.weight_scheme).to(self.weight_dtype)

    @property
    def quantized_as(self) -> str:
        return f"{super().quantized_as}, int8 kernel"

    def qparams(self, x: Tensor) -> QParams:
        """The grids of an input: [groups], or of each of its rows, [rows, groups]."""
        quantizer = self.input_quantizer
        found = qparams_of_rows(x, by_row(quantizer.scheme)) if quantizer.scheme.time == "dynamic" else quantizer.qparams(x)
        return QParams(found.scale[0], found.zero_point[0]) if len(x) == 1 and found.scale.ndim > 1 else found

    def biased(self, x: Tensor) -> Tensor | None:
        """The bias, float32; NaN throughout where an element of x is, which has no level: a dynamic scale is NaN itself."""
        own = None if self.bias is None else self.bias.float()
        if self.input_quantizer.scheme.time == "dynamic":
            return own
        own = x.new_zeros(len(cast(Tensor, self.weight_int)), dtype=torch.float32) if own is None else own
        return own + if_broken(x)


class IntegerConvolution(IntegerLayer):
    """A convolution of an image or a sequence."""

    def prepare(self, factors: list[Factor]) -> None:
        window = Window.of(cast("nn.Conv2d", self))
        assert window is not None
        self.kernels = [Convolution(window, factor) for factor in factors]

    def product(self, x: Tensor) -> Tensor:
        qparams = self.qparams(x)
        if qparams.scale.ndim == 1:
            return self._product(x, qparams)
        rows = zip(x.split(1), *qparams, strict=True)  # a kernel has one zero point for all
        return torch.cat([self._product(row, QParams(*own)) for row, *own in rows])

    def _product(self, x: Tensor, qparams: QParams) -> Tensor:
        scheme, bias, y = self.input_quantizer.scheme, self.biased(x), None
        parts = x.split(self.parts, 1) if self.parts else (x,)
        grids = zip(*(values.split(1) for values in qparams), strict=True)
        for part, grid, kernel in zip(parts, map(QParams._make, grids), self.kernels, strict=True):
            scale, zero_point = float(grid.scale), int(grid.zero_point) - int(scheme.qmin)
            y = kernel(levels(part, grid, scheme), scale, zero_point, bias if y is None else None, y)
        assert y is not None
        return y


class IntegerLinear(IntegerLayer):
    """A linear layer."""

    def prepare(self, factors: list[Factor]) -> None:
        (factor,) = factors
        self.kernel = Linear(factor)

    def product(self, x: Tensor) -> Tensor:
        bias, scheme = self.biased(x), self.input_quantizer.scheme
        rows, qparams = x.reshape(-1, x.shape[-1]), self._qparams_of_tokens(x)
        codes = levels(rows, qparams, scheme)
        zero_point = qparams.zero_point - int(scheme.qmin)
        if qparams.scale.numel() == 1:
            y = self.kernel(codes, float(qparams.scale), int(zero_point), bias)
        else:
            y = self.kernel(codes, 1.0, CENTRE, None)
            y = y.addcmul_(zero_point - CENTRE, self.kernel.sums, value=-1).mul_(qparams.scale)
            y = y if bias is None else y.add_(bias)
        return y.view(*x.shape[:-1], -1)

    def _qparams_of_tokens(self, x: Tensor) -> QParams:
        """The grid of all tokens, [1], or of each, [tokens, 1]."""
        scheme = self.input_quantizer.scheme
        if isinstance(scheme.granularity, PerGroup) and x.ndim > 1 and x.shape[-1] >= LEAST:
            rows = x.reshape(-1, x.shape[-1])
            return grid_of(rows.amin(-1, keepdim=True), rows.amax(-1, keepdim=True), scheme)
        found = self.qparams(x)
        if found.scale.ndim == 1:
            return found
        tokens = x[0].numel() // x.shape[-1]
        return QParams(*(values.repeat_interleave(tokens, 0) for values in found))


def lacks(layer: QuantizedLayer) -> str | None:
    """Why there is no integer kernel for a layer; None where there is one."""
    quantizer, weight = layer.input_quantizer, layer.weight_scheme
    if weight is None or layer.weight_int is None:
        return "the weight is in floating point"
    if not isinstance(quantizer, ActivationQuantizer) or quantizer.mode != "on":
        return "the input is in floating point"
    return _lacks_grids(layer, weight, quantizer.scheme) or _lacks_sums(layer)


def _lacks_grids(layer: QuantizedLayer, weight: Scheme, act: Scheme) -> str | None:
    if not (weight.is_integer and act.is_integer):
        return "floating point numbers of few bits"
    if max(weight.bits, act.bits) > BITS:
        return f"more than {BITS} bits"
    groups = [one for one in (whole(weight.granularity), whole(act.granularity)) if isinstance(one, PerGroup)]
    if any(one.size is not None for one in groups) or isinstance(whole(weight.granularity), PerGroup):
        return "scales of groups, which kernels cannot sum over"
    if groups and not isinstance(layer, nn.Linear):
        return "a scale for each place of an image"
    return None


def _lacks_sums(layer: QuantizedLayer) -> str | None:
    assert layer.weight_int is not None
    if layer.weight_int[0].numel() * 2 ** (2 * BITS - 1) >= SUMS:
        return "sums of more than an int32 holds"
    if isinstance(layer, nn.Linear):
        return None if layer.parts is None else "a linear layer in parts"
    if Window.of(cast("nn.Conv2d", layer)) is None:
        return "padding that is not zeros on both sides alike"
    if not is_whole(layer) and (layer.parts or any(factor.zero_point is not None for factor in factors_of(layer))):
        return "groups of channels with zero points of their own"
    return None


def to_integer(layer: QuantizedLayer) -> IntegerLayer:
    """Turn a layer into one that multiplies integers: the object itself changes class, and stays one of its own."""
    factors, own = factors_of(layer), type(layer)
    kind = IntegerLinear if isinstance(layer, nn.Linear) else IntegerConvolution
    made: Any = layer
    made.weight_dtype = layer.weight.dtype
    del made.weight
    made.__class__ = type(own.__name__.replace("Quantized", "Integer", 1), (kind, own), {})
    made.prepare(factors)
    result: IntegerLayer = made
    return result
