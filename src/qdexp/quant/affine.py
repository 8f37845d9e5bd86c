"""The quantizer: from values to the levels of a grid, and back.

With scale s > 0, zero point z and integers qmin .. qmax of a scheme,

    x_int = clamp(round(x * (1 / s)) + z, qmin, qmax)        round: half to even
    x_hat = (x_int - z) * s

Multiplying by the reciprocal, computed once, is what torch's fused `fake_quantize_per_tensor_affine` does: both agree to the
last bit. Floating point numbers of few bits (`floats`) have no zero point:

    x_float = clamp(round(x / s), qmin, qmax)                round: to the nearest number, half to the even one
    x_hat = x_float * s

Their x / s is divided, as by torchao's quantizers. What rounds NaN to a number puts it back, so that a broken network is seen
to be one. Zero is always on the grid, exactly: padding, ReLU and dead channels rely on it (Jacob et al. 2018, arXiv 1712.05877,
section 2.1).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qdexp.quant import scales
from qdexp.quant.floats import FLOATS, Float
from qdexp.quant.scheme import POWERS, TWO_LEVELS, PerTensor, Scheme, Split


class QParams(NamedTuple):
    """The constants of a grid that its scheme leaves open.

    Attributes:
        scale: The scales, positive, float32 [groups]; [rows, groups] where the grid differs from row to row of a tensor.
        zero_point: The zero points, int32 of the same shape; 0 where the grid is symmetric.
    """

    scale: Tensor
    zero_point: Tensor


def qparams_from_range(lo: Tensor, hi: Tensor, scheme: Scheme) -> QParams:
    """The grid that spans [lo, hi], one range a group (any shape, kept); all groups of a tensor, where these have one float32.

    The range is first extended to contain zero. A symmetric grid spans [-m, m], m = max(|lo|, |hi|), m being the level qmax,
    but for scales in e8m0, which are rounded down: there it may lie beyond. A range of (nearly) no width gets scale 1, or the
    least one that there is.
    """
    scale, zero_point = grid_of(lo, hi, scheme)
    return QParams(scale, zero_point.int())


def grid_of(lo: Tensor, hi: Tensor, scheme: Scheme) -> QParams:
    """The grid of a range as ``qparams_from_range`` gives it, with zero points in float32."""
    lo, hi = lo.float().clamp_max(0), hi.float().clamp_min(0)
    if not scheme.symmetric:
        scale = scales.rounded((hi - lo) / (scheme.qmax - scheme.qmin), scheme.scale)
        return QParams(scale, torch.round(-lo / scale).clamp(scheme.qmin, scheme.qmax).nan_to_num_(0))
    magnitude = torch.maximum(-lo, hi)
    if scheme.scale == POWERS:
        scale = scales.power_of_two(magnitude, FLOATS[scheme.number])
    elif scheme.scale == TWO_LEVELS:
        scale = scales.two_levels(magnitude, FLOATS[scheme.number], magnitude.max()).scale
    else:
        scale = scales.rounded(magnitude / scheme.qmax, scheme.scale)
    return QParams(scale, torch.zeros_like(scale))


def qparams_of_rows(x: Tensor, scheme: Scheme) -> QParams:
    """The grids of a dynamic scheme, [rows, groups]: those that span each row of x [rows, ...] alone, in each of its pieces."""
    granularity = scheme.granularity
    parts = x.split(granularity.sizes, granularity.axis) if isinstance(granularity, Split) else (x,)
    rows = [part.flatten(1) if part.ndim > 1 else part[:, None] for part in parts]
    lo, hi = torch.stack([one.amin(1) for one in rows], 1), torch.stack([one.amax(1) for one in rows], 1)
    return qparams_from_range(lo, hi, scheme)


def normalized(x: Tensor, scale: Tensor, scheme: Scheme, reciprocal: Tensor | None = None) -> Tensor:
    """x in units of the scale, which broadcasts: anew, float32 at least. reciprocal: of the scale, where that of a format is
    rounded in a way of its own."""
    if reciprocal is None and scheme.is_integer:
        reciprocal = scale.reciprocal()
    return (x / scale).float() if reciprocal is None else x * reciprocal


def round_to_levels(v: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """The level nearest to each value in units of the scale, float; v is overwritten. Every rounding to nearest is this one."""
    return _nearest(v, zero_point, scheme).clamp_(scheme.qmin, scheme.qmax)


def level_below(v: Tensor, scheme: Scheme) -> Tensor:
    """The highest level that is not above each value in units of the scale, as if the grid had no ends. Zero points apart."""
    return v.floor() if scheme.is_integer else _float(scheme).round_(v.clone(), Tensor.floor_)


def next_level(levels: Tensor, scheme: Scheme) -> Tensor:
    """The lowest level above each of these, as if the grid had no ends."""
    return levels + (1 if scheme.is_integer else _float(scheme).gap(levels))


def from_levels(levels: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """x_hat of levels, float, which are overwritten."""
    return levels.sub_(zero_point).mul_(scale) if scheme.is_integer else levels.mul_(scale)


def encode(levels: Tensor, scheme: Scheme) -> Tensor:
    """Levels, float -> what is stored of them, dtype `scheme.dtype`: integers, or the bits of floating point numbers."""
    return levels.to(scheme.dtype) if scheme.is_integer else _float(scheme).encode(levels)


def decode(codes: Tensor, scheme: Scheme) -> Tensor:
    """The inverse of `encode`, float32."""
    return codes.float() if scheme.is_integer else _float(scheme).decode(codes)


def quantize(x: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """Round values to the levels of a grid (the formula at the head of this module).

    Args:
        x: The values, any floating dtype.
        qparams: The constants of the grid.
        scheme: The scheme of the grid.

    Returns:
        The codes, of the shape and strides of x and dtype ``scheme.dtype``.
    """
    scale, zero_point = _expand(qparams, scheme, x)
    v = normalized(x, scale, scheme, _reciprocal(qparams, scheme, x))
    return encode(round_to_levels(v, zero_point, scheme), scheme)


def dequantize(codes: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """Return the values of codes.

    Args:
        codes: Codes as ``quantize`` returns them.
        qparams: The constants of the grid.
        scheme: The scheme of the grid.

    Returns:
        The values, float32 of the shape and strides of the codes.
    """
    return from_levels(decode(codes, scheme), *_expand(qparams, scheme, codes), scheme)


def fake_quantize(x: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """dequantize(quantize(x)) without the codes; keeps dtype, shape and strides. Not differentiable."""
    fusible = scheme.is_integer and isinstance(scheme.granularity, PerTensor) and qparams.scale.ndim == 1
    if x.is_cuda and fusible:  # four times slower than ours on a CPU
        return fused(x, qparams, scheme)
    return round_to_grid(x, *_expand(qparams, scheme, x), scheme, _reciprocal(qparams, scheme, x)).to(x.dtype)


def fused(x: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """`fake_quantize` on one grid of integers for the whole tensor, [1] each, by torch's kernel."""
    rounded = torch.fake_quantize_per_tensor_affine(x, *qparams, int(scheme.qmin), int(scheme.qmax))
    return torch.where(x.isnan(), x, rounded)


def round_to_grid(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, reciprocal: Tensor | None = None) -> Tensor:
    """x_hat for a scale and zero point that broadcast against x. The shape is that of x * scale."""
    levels = round_to_levels(normalized(x, scale, scheme, reciprocal), zero_point, scheme)
    return from_levels(levels, scale, zero_point, scheme)


class _FixedScale(torch.autograd.Function):
    """x_hat with a gradient to x alone; keeps one byte an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, reciprocal: Tensor | None) -> Tensor:
        level = _nearest(normalized(x, scale, scheme, reciprocal), zero_point, scheme)
        ctx.save_for_backward((level >= scheme.qmin).logical_and_(level <= scheme.qmax))
        return from_levels(level.clamp_(scheme.qmin, scheme.qmax), scale, zero_point, scheme).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None, None]:
        (inside,) = ctx.saved_tensors
        return _where(inside, gradients[0]), None, None, None, None


class _LearnedScale(torch.autograd.Function):
    """x_hat with gradients to x and to the scale; the rounding counts as the identity."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
        ctx.save_for_backward(x, scale, zero_point)
        ctx.scheme = scheme
        return round_to_grid(x, scale, zero_point, scheme).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (gradient,) = gradients
        x, scale, zero_point = ctx.saved_tensors
        exact = normalized(x, scale, ctx.scheme)
        level = _nearest(exact.clone(), zero_point, ctx.scheme)
        held = level.clamp(ctx.scheme.qmin, ctx.scheme.qmax)
        inside = level == held
        # d x_hat / d s: round(x / s) - x / s inside the grid, the outermost level beyond it
        by_scale = gradient * held.sub_(zero_point).sub_(_where(inside, exact))
        return _where(inside, gradient), by_scale.sum_to_size(scale.shape), None, None


def _where(inside: Tensor, x: Tensor) -> Tensor:
    """0 elsewhere. On a CPU a product of booleans and numbers takes five times as long, and copies the former as numbers."""
    return torch.where(inside, x, 0.0)


def straight_through(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme, reciprocal: Tensor | None = None) -> Tensor:
    """`round_to_grid` with straight-through gradients to x and, where it is learned, to the scale (LSQ, Esser et al. 2020,
    arXiv 1902.08153, equation 3); in the dtype of x."""
    if scale.requires_grad:
        result: Tensor = _LearnedScale.apply(x, scale, zero_point, scheme)
    else:
        result = _FixedScale.apply(x, scale, zero_point, scheme, reciprocal)
    return result


def fake_quantize_learned(x: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """`fake_quantize` with straight-through gradients, see `straight_through`."""
    return straight_through(x, *_expand(qparams, scheme, x), scheme, _reciprocal(qparams, scheme, x))


def _nearest(v: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """The level nearest to each value, as if the grid had no ends; v is overwritten."""
    return v.round_().add_(zero_point) if scheme.is_integer else _float(scheme).round_(v)


def _float(scheme: Scheme) -> Float:
    return FLOATS[scheme.number]


def _reciprocal(qparams: QParams, scheme: Scheme, x: Tensor) -> Tensor | None:
    """See `normalized`."""
    if scheme.scale != TWO_LEVELS:
        return None
    return scheme.granularity.expand(scales.levels_of(qparams.scale).reciprocal, x.shape)


def _expand(qparams: QParams, scheme: Scheme, x: Tensor) -> QParams:
    return QParams(*(scheme.granularity.expand(values, x.shape) for values in qparams))
