"""The uniform affine quantizer.

With scale s > 0, zero point z and integers qmin .. qmax of a scheme,

    x_int = clamp(round(x * (1 / s)) + z, qmin, qmax)        round: half to even
    x_hat = (x_int - z) * s

Multiplying by the reciprocal, computed once, is what torch's fused `fake_quantize_per_tensor_affine` does: both agree to the
last bit. The fused one rounds NaN to a number: it is put back, so that a broken network is seen to be one. Zero is always on
the grid, exactly: padding, ReLU and dead channels rely on it (Jacob et al. 2018, arXiv 1712.05877, section 2.1).
"""

from typing import Any, NamedTuple

import torch
from torch import Tensor

from qdexp.quant.scheme import PerTensor, Scheme, Split


class QParams(NamedTuple):
    """What a scheme leaves open. scale: float32 [groups], positive and finite. zero_point: int32 [groups]. Both are
    [rows, groups] where the grid differs from row to row of a tensor."""

    scale: Tensor
    zero_point: Tensor


def qparams_from_range(lo: Tensor, hi: Tensor, scheme: Scheme) -> QParams:
    """The grid that spans [lo, hi], one range a group (any shape, kept).

    The range is first extended to contain zero. A symmetric grid spans [-m, m], m = max(|lo|, |hi|), m being the level qmax.
    A range of (nearly) no width gets scale 1.
    """
    lo, hi = lo.float().clamp_max(0), hi.float().clamp_min(0)
    width, levels = (torch.maximum(-lo, hi), scheme.qmax) if scheme.symmetric else (hi - lo, scheme.qmax - scheme.qmin)
    scale = width / levels
    # A subnormal scale has an infinite reciprocal, and 0 * inf is not 0.
    scale = torch.where(scale < torch.finfo(torch.float32).tiny, 1.0, scale)
    zero_point = torch.zeros_like(scale) if scheme.symmetric else torch.round(-lo / scale).clamp(scheme.qmin, scheme.qmax)
    return QParams(scale, zero_point.int())


def qparams_of_rows(x: Tensor, scheme: Scheme) -> QParams:
    """The grids of a dynamic scheme, [rows, groups]: those that span each row of x [rows, ...] alone, in each of its pieces."""
    granularity = scheme.granularity
    parts = x.split(granularity.sizes, granularity.axis) if isinstance(granularity, Split) else (x,)
    extremes = [part.reshape(len(part), -1).aminmax(dim=1) for part in parts]
    lo, hi = (torch.stack(ends, 1) for ends in zip(*extremes, strict=True))
    return qparams_from_range(lo, hi, scheme)


def quantize(x: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """x, any floating dtype -> integers of the same shape and strides, dtype `scheme.dtype`."""
    scale, zero_point = _expand(qparams, scheme, x.ndim)
    return (x * scale.reciprocal()).round_().add_(zero_point).clamp_(scheme.qmin, scheme.qmax).to(scheme.dtype)


def dequantize(x_int: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """Integers -> float32 of the same shape and strides."""
    scale, zero_point = _expand(qparams, scheme, x_int.ndim)
    return x_int.float().sub_(zero_point).mul_(scale)


def fake_quantize(x: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """dequantize(quantize(x)) without the integers; keeps dtype, shape and strides. Not differentiable."""
    whole = isinstance(scheme.granularity, PerTensor) and qparams.scale.ndim == 1
    if x.is_cuda and whole:  # four times slower than ours on a CPU
        return fused(x, qparams, scheme)
    scale, zero_point = _expand(qparams, scheme, x.ndim)
    return round_to_grid(x, scale, zero_point, scheme).to(x.dtype)


def fused(x: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """`fake_quantize` on one grid for the whole tensor, [1] each, by torch's kernel."""
    return torch.where(x.isnan(), x, torch.fake_quantize_per_tensor_affine(x, *qparams, scheme.qmin, scheme.qmax))


def round_to_grid(x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
    """x_hat for a scale and zero point that broadcast against x. The shape is that of x * scale."""
    x_int = (x * scale.reciprocal()).round_().add_(zero_point).clamp_(scheme.qmin, scheme.qmax)
    return x_int.sub_(zero_point).mul_(scale)


class _FixedScale(torch.autograd.Function):
    """x_hat with a gradient to x alone; keeps one byte an element."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, scale: Tensor, zero_point: Tensor, scheme: Scheme) -> Tensor:
        level = (x * scale.reciprocal()).round_().add_(zero_point)
        ctx.save_for_backward((level >= scheme.qmin).logical_and_(level <= scheme.qmax))
        return level.clamp_(scheme.qmin, scheme.qmax).sub_(zero_point).mul_(scale).to(x.dtype)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None, None]:
        (inside,) = ctx.saved_tensors
        return gradients[0] * inside, None, None, None


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
        exact = x * scale.reciprocal()
        level = exact.round()
        held = level.clamp(*(end - zero_point for end in (ctx.scheme.qmin, ctx.scheme.qmax)))
        inside = level == held
        # d x_hat / d s: round(x / s) - x / s inside the grid, the outermost level beyond it
        by_scale = gradient * (held - exact * inside)
        return gradient * inside, by_scale.sum_to_size(scale.shape), None, None


def fake_quantize_learned(x: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """`fake_quantize` with straight-through gradients to x and, where it is learned, to the scale (LSQ, Esser et al. 2020,
    arXiv 1902.08153, equation 3)."""
    kind: Any = _LearnedScale if qparams.scale.requires_grad else _FixedScale
    result: Tensor = kind.apply(x, *_expand(qparams, scheme, x.ndim), scheme)
    return result


def _expand(qparams: QParams, scheme: Scheme, ndim: int) -> QParams:
    return QParams(*(scheme.granularity.expand(values, ndim) for values in qparams))
