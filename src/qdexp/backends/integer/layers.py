"""Layers whose products are those of integers.

A quantized layer that becomes one keeps its name, hooks, transforms and branch; it rounds its input to the same levels, and
hands these to a kernel that has the integers of its weight. Its floating point weight goes.
"""

from abc import abstractmethod
from functools import cached_property
from typing import Any, cast

import torch
from torch import Tensor, nn

from qdexp.backends.integer.factors import Factor, factors_of
from qdexp.backends.integer.kernels import Convolution, Grid, Linear, Window, has_zero, is_broken, levels, levels_of_rows
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.affine import QParams, dequantize, grid_of, qparams_of_rows
from qdexp.quant.dynamic import LEAST, by_row
from qdexp.quant.granularity import PerGroup, whole
from qdexp.quant.layers import QuantizedLayer, is_whole
from qdexp.quant.scheme import Scheme

BITS = 8
"""The most bits of a factor."""
CENTRED = Grid(1.0, 2 ** (BITS - 1), 2**BITS - 1)
"""The middle of levels, for tokens that have grids of their own: the difference is made up for afterwards."""
SUMS = 2**31
"""The first sum that an int32 does not hold."""


class IntegerLayer(QuantizedLayer):
    """The behaviour that integer convolutions and linear layers share."""

    input_quantizer: ActivationQuantizer
    bias: Tensor | None
    weight_dtype: torch.dtype
    """The dtype of the weight that it had."""

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
    @abstractmethod
    def held_bytes(self) -> int:
        """The bytes of the weight as its kernels hold it."""

    @property
    def weight(self) -> Tensor:  # type: ignore[override]
        """The weight that the integers stand for, computed at each access."""
        assert self.weight_int is not None and self.weight_qparams is not None and self.weight_scheme is not None
        return dequantize(self.weight_int, self.weight_qparams, self.weight_scheme).to(self.weight_dtype)

    @property
    def quantized_as(self) -> str:
        return f"{super().quantized_as}, int8 kernel"

    @cached_property
    def static(self) -> list[Grid]:
        """The grids of all inputs, one of each part; none where they depend on the call."""
        quantizer = self.input_quantizer
        if quantizer.scheme.time != "static":
            return []
        return [Grid.of(*own, quantizer.scheme) for own in zip(quantizer.scale, quantizer.zero_point, strict=True)]

    def qparams(self, x: Tensor) -> QParams:
        """The grids of this input, [groups], or of each of its rows, [rows, groups]."""
        quantizer = self.input_quantizer
        found = qparams_of_rows(x, by_row(quantizer.scheme)) if quantizer.scheme.time == "dynamic" else quantizer.qparams(x)
        return QParams(found.scale[0], found.zero_point[0]) if len(x) == 1 and found.scale.ndim > 1 else found

    def biased(self, x: Tensor) -> Tensor | None:
        """The bias, float32; NaN where an element of x is, which has no level. A dynamic scale is NaN itself there."""
        if self.input_quantizer.scheme.time != "dynamic" and is_broken(x):
            return torch.full((len(cast(Tensor, self.weight_int)),), torch.nan)
        return None if self.bias is None else self.bias.float()


class IntegerConvolution(IntegerLayer):
    """A convolution of an image or a sequence."""

    def prepare(self, factors: list[Factor]) -> None:
        window = Window.of(cast("nn.Conv2d", self))
        assert window is not None
        self.kernels = [Convolution(window, factor) for factor in factors]

    @property
    def held_bytes(self) -> int:
        return sum(kernel.held_bytes for kernel in self.kernels)

    def product(self, x: Tensor) -> Tensor:
        if x.ndim < cast(Tensor, self.weight_int).ndim:  # an image without a batch
            return self.product(x[None])[0]
        if self.static:
            return self._product(x, self.static)
        qparams, scheme = self.qparams(x), self.input_quantizer.scheme
        rows = [qparams] if qparams.scale.ndim == 1 else list(map(QParams._make, zip(*qparams, strict=True)))
        grids = [[Grid.of(*own, scheme) for own in zip(*row, strict=True)] for row in rows]
        return torch.cat([self._product(own, grid) for own, grid in zip(x.split(len(x) // len(rows)), grids, strict=True)])

    def _product(self, x: Tensor, grids: list[Grid]) -> Tensor:
        """The product for rows that share their grids: a kernel has one zero point for all."""
        bias, y = self.biased(x), None
        parts = x.split(self.parts, 1) if self.parts else (x,)
        for part, grid, kernel in zip(parts, grids, self.kernels, strict=True):
            y = kernel(levels(part, grid), grid, bias if y is None else None, y)
        assert y is not None
        return y


class IntegerLinear(IntegerLayer):
    """A linear layer."""

    def prepare(self, factors: list[Factor]) -> None:
        (factor,) = factors
        self.kernel = Linear(factor)

    @property
    def held_bytes(self) -> int:
        return self.kernel.held_bytes

    def product(self, x: Tensor) -> Tensor:
        rows, bias, scheme = x.reshape(-1, x.shape[-1]), self.biased(x), self.input_quantizer.scheme
        grids = self.static
        if not grids:
            qparams = self._qparams_of_tokens(x)
            grids = [Grid.of(*qparams, scheme)] if qparams.scale.numel() == 1 else []
        if grids:
            y = self.kernel(levels(rows, grids[0]), grids[0], bias)
        else:
            y = self.kernel(levels_of_rows(rows, qparams, scheme), CENTRED, None)
            offset = qparams.zero_point - (CENTRED.zero_point + int(scheme.qmin))
            y = y.addcmul_(offset, self.kernel.sums, value=-1).mul_(qparams.scale)
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
    return None if has_zero(cast(ActivationQuantizer, layer.input_quantizer)) else "a zero point that is no level"


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
