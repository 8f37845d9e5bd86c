"""Integer kernels of oneDNN, as torch hands them out: activations of 8 bits with a zero point, weights of 8 bits, one scale for
each output channel, sums in int32, what comes out in float32.

    y = s (sum (X - z) W) s_w + b

They are those of torch's quantized export, called eagerly. Padding is X = z, a real zero. Weights are laid out as the kernel
for one shape of input wants them, once for each run of calls with that shape: else they would be reordered at every call.
"""

import math
import warnings
from collections.abc import Sequence
from typing import Any, NamedTuple, Self, cast

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdexp.backends.integer.factors import Factor
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.affine import QParams, normalized, round_to_levels
from qdexp.quant.scheme import Scheme

warnings.filterwarnings("ignore", message="torch.quantize_per_tensor")  # deprecated: where torch lacks it we round ourselves
_onednn = torch.ops.onednn
_BITS, _MOST, _SIGN = 8, 255, 128
_FLOAT = (1.0, 0, torch.float32)
_AS_IT_IS: tuple[Any, ...] = ("none", [], "")
_SUM: tuple[Any, ...] = (1.0, 0, "sum", 1.0, None, [], None)
"""The output's scale, zero point and type, and its transformation before."""


def are_there() -> bool:
    """Whether this torch has the kernels."""
    return torch.backends.mkldnn.is_available() and hasattr(_onednn, "qconv2d_pointwise")


def are_fast() -> bool:
    """Whether this CPU has the instructions that they are made for."""
    return torch.cpu._is_vnni_supported()


class Grid(NamedTuple):
    """The grid of a whole tensor, with levels counted from 0: values are ``scale`` (level - ``zero_point``), ``top`` is the
    highest level."""

    scale: float
    zero_point: int
    top: int

    @classmethod
    def of(cls, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> "Grid":
        """Make the grid from the constants of one group."""
        return cls(float(scale), int(zero_point) - int(scheme.qmin), int(scheme.qmax - scheme.qmin))


def levels(x: Tensor, grid: Grid) -> Tensor:
    """The levels of x, uint8, as ``affine.quantize`` rounds it; what is NaN gets any."""
    if not (math.isfinite(grid.scale) and hasattr(torch, "quantize_per_tensor")):
        whole = QParams(torch.tensor([grid.scale]), torch.tensor([grid.zero_point]))
        return levels_of_rows(x, whole, Scheme(_BITS)).clamp_(max=grid.top)
    # in one pass over x. What is beyond any int32 wraps around there where the zero point is no int8: then it is less by 128
    signed = grid.zero_point > _SIGN - 1
    dtype = torch.qint8 if signed else torch.quint8
    made = torch.quantize_per_tensor(x.float(), grid.scale, grid.zero_point - _SIGN * signed, dtype)
    codes = torch.empty(0, dtype=torch.uint8).set_(made.untyped_storage(), 0, made.shape, made.stride())
    codes = codes.bitwise_xor_(_SIGN) if signed else codes
    return codes if grid.top == _MOST else codes.clamp_(max=grid.top)


def levels_of_rows(x: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """The levels of x, uint8, where grids differ within a tensor; ``qparams`` broadcast against x."""
    from_zero = Scheme(scheme.bits)
    zero_point = qparams.zero_point - int(scheme.qmin)
    return round_to_levels(normalized(x, qparams.scale, scheme), zero_point, from_zero).to(torch.uint8)


def has_zero(quantizer: ActivationQuantizer) -> bool:
    """Whether 0 is a level of all grids that a quantizer keeps: grids that were found elsewhere may lie beside it."""
    zero_point, scheme = quantizer.zero_point, quantizer.scheme
    return bool(((zero_point >= scheme.qmin) & (zero_point <= scheme.qmax)).all())


def is_broken(x: Tensor) -> bool:
    """Whether any element is NaN."""
    return math.isnan(float(x.amax()))


class Window(NamedTuple):
    """The window with which a convolution moves over its input, along each dimension of an image or a sequence."""

    stride: Sequence[int]
    padding: Sequence[int]
    dilation: Sequence[int]
    groups: int = 1

    @classmethod
    def of(cls, layer: nn.Conv1d | nn.Conv2d) -> "Window | None":
        """The window of a layer; None where it does not pad with zeros, the same on both sides."""
        sides = layer._reversed_padding_repeated_twice[::-1]
        if sides[::2] != sides[1::2] or layer.padding_mode != "zeros":
            return None
        return cls(layer.stride, sides[::2], layer.dilation, layer.groups)

    def arguments(self) -> tuple[list[int], list[int], list[int], int]:
        """The arguments for an image, of a single line where the input is a sequence."""
        first: tuple[list[int], ...] = ([1], [0], [1]) if len(self.stride) == 1 else ([], [], [])
        stride, padding, dilation = ([*one, *own] for one, own in zip(first, self[:3], strict=True))
        return stride, padding, dilation, self.groups


class _Constant:
    """A value that never changes, so that copies of a network may share it."""

    def __deepcopy__(self, memo: Any) -> Self:
        return self


class Convolution(_Constant):
    """A convolution with one weight in integers; of a layer of several groups without zero points."""

    def __init__(self, window: Window, factor: Factor) -> None:
        self._weight, self._arguments = _image(factor.integers), window.arguments()
        self._grid = factor.scale, torch.zeros(len(factor.scale), dtype=torch.int64)
        self._packed: tuple[torch.Size | None, Tensor] = (None, self._weight)
        self._correction: tuple[_WindowSums, Tensor] | None = None
        if factor.zero_point is not None:
            by_channel = factor.zero_point * factor.scale
            self._correction = _WindowSums(window, factor.integers), by_channel.view(-1, *[1] * (factor.integers.ndim - 2))

    @property
    def held_bytes(self) -> int:
        """The bytes of the integers, and of their layout for the kernel once it has been called."""
        return self._weight.numel() * (1 if self._packed[0] is None else 2)

    def __call__(self, x: Tensor, grid: Grid, bias: Tensor | None, added: Tensor | None = None) -> Tensor:
        """Levels [rows, in, ...] -> float32 [rows, out, ...], with what is ``added`` to it, which may be overwritten."""
        image = _image(x).contiguous(memory_format=torch.channels_last)
        shape, packed = self._packed
        if shape != image.shape:
            packed = _onednn.qconv_prepack(self._weight, self._grid[0], *grid[:2], *self._arguments, list(image.shape))
            self._packed = image.shape, packed
        given, result = (image, *grid[:2], packed, *self._grid), (*self._arguments, *_FLOAT)
        if added is None:
            y = _onednn.qconv2d_pointwise(*given, bias, *result, *_AS_IT_IS)
        else:
            y = _onednn.qconv2d_pointwise.binary(*given, _image(added), bias, *result, *_SUM)
        y = y.squeeze(2) if x.ndim == 3 else y
        if self._correction is not None:
            sums, by_channel = self._correction
            y.addcmul_(sums(x, grid.zero_point), by_channel, value=-grid.scale)
        return cast(Tensor, y)


class _WindowSums:
    """The part of a convolution that depends on its input alone, sum (X - z) over each window: summed over channels in
    integers, then over the few places of the window."""

    def __init__(self, window: Window, weight: Tensor) -> None:
        channels, size = weight.shape[1], weight.shape[2:]
        ones = torch.ones(1, channels, *[1] * len(size), dtype=torch.int8)
        once = [1] * len(size)
        self._channels = Convolution(Window(once, [0] * len(size), once), Factor(ones, torch.ones(1), None))
        self._places, self._window = torch.ones(1, 1, *size), window

    def __call__(self, x: Tensor, zero_point: int) -> Tensor:
        """Levels [rows, in, ...] -> whole numbers, float32 [rows, 1, ...]."""
        convolve: Any = F.conv1d if x.ndim == 3 else F.conv2d
        sums = self._channels(x, Grid(1.0, zero_point, _MOST), None)
        return cast(Tensor, convolve(sums, self._places, None, *self._window[:3]))


class Linear(_Constant):
    """A linear layer with its weight in integers."""

    def __init__(self, factor: Factor) -> None:
        self._packed = _onednn.qlinear_prepack(factor.integers.clone(), None)
        self._grid = factor.scale, torch.zeros(len(factor.scale), dtype=torch.int64)
        self._correction: tuple[Linear, Tensor] | None = None
        sums = factor.integers.sum(1, dtype=torch.int32).float()
        if factor.zero_point is not None:
            sums = sums - factor.integers.shape[1] * factor.zero_point
            ones = Factor(torch.ones_like(factor.integers[:1]), torch.ones(1), None)
            self._correction = Linear(ones), factor.zero_point * factor.scale
        self.sums = sums * factor.scale
        """The sums of the weight that the integers stand for over its inputs, float32 [out]."""
        self.held_bytes = factor.integers.numel()

    def __call__(self, x: Tensor, grid: Grid, bias: Tensor | None) -> Tensor:
        """Levels [rows, in] -> float32 [rows, out]."""
        y = _onednn.qlinear_pointwise(x, *grid[:2], self._packed, *self._grid, bias, *_FLOAT, *_AS_IT_IS)
        if self._correction is not None:
            sums, by_output = self._correction
            y.addcmul_(sums(x, grid._replace(scale=1.0), None), by_output, value=-grid.scale)
        return cast(Tensor, y)


def _image(x: Tensor) -> Tensor:
    """A sequence as an image of one line."""
    return x.unsqueeze(2) if x.ndim == 3 else x
