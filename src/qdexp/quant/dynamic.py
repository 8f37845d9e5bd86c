"""Grids of activations that are computed at the call, one for each group of each row.

Scales are never repeated to the size of what they scale: groups are a dimension of their own, which a view adds. An axis with
fewer than `LEAST` elements, in any part, has no groups: there each row has one grid, or one in each part, as ``PerTensor``.

A group that holds an infinity or NaN comes out as NaN throughout: its largest magnitude is no number.
"""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import torch
import torch.nn.functional as F
from torch import Tensor

from qdexp.quant.affine import (
    QParams,
    fake_quantize,
    fake_quantize_learned,
    grid_of,
    qparams_of_rows,
    round_to_grid,
    straight_through,
)
from qdexp.quant.floats import FLOATS
from qdexp.quant.granularity import PerGroup, PerTensor, Split, whole
from qdexp.quant.scales import two_levels
from qdexp.quant.scheme import TWO_LEVELS, Scheme

LEAST = 16
"""Elements along the axis of groups: of fewer a scale takes as much as it saves. A vector alone has none either."""
_NARROW = 32
"""The number of neighbours in memory below which torch's reductions on a CPU are ten times slower; pooling is not."""


def quantize_dynamic(x: Tensor, scheme: Scheme) -> Tensor:
    """x_hat of x [rows, ...] on a dynamic grid; keeps dtype, shape and memory format. Straight-through gradients reach x."""
    granularity = whole(scheme.granularity)
    if isinstance(granularity, PerGroup) and x.ndim > 1 and _shortest(x, scheme) >= LEAST:
        return _grouped(x, scheme, granularity)
    coarse = scheme if isinstance(granularity, PerTensor) else by_row(scheme)
    quantize = fake_quantize_learned if x.requires_grad else fake_quantize
    return quantize(x, qparams_of_rows(x.detach(), coarse), coarse)


def by_row(scheme: Scheme) -> Scheme:
    """The scheme with one grid per row, or one for each of its parts. A scale that belongs to groups becomes a float32."""
    split, whole_tensor = scheme.granularity, PerTensor()
    granularity = replace(split, within=whole_tensor) if isinstance(split, Split) else whole_tensor
    return replace(scheme, granularity=granularity, scale="float32" if scheme.scale == TWO_LEVELS else scheme.scale)


def _shortest(x: Tensor, scheme: Scheme) -> int:
    """The least number of elements along the axis of groups, of all parts."""
    granularity = scheme.granularity
    if isinstance(granularity, Split):
        return min(granularity.sizes)
    assert isinstance(granularity, PerGroup)
    return x.shape[granularity.axis]


@dataclass
class _Groups:
    """Groups of equal size of a tensor: ``x``, with them as a dimension more; ``dim``: that along which a group lies."""

    x: Tensor
    dim: int
    moved: bool
    axis: int

    @classmethod
    def of(cls, x: Tensor, size: int, axis: int) -> "_Groups":
        axis %= x.ndim
        moved = axis != x.ndim - 1 and x.stride(axis) == 1  # channels last: scales lie in memory as what they scale
        x = x.movedim(axis, -1) if moved else x
        dim = x.ndim - 1 if moved else axis
        return cls(x.unflatten(dim, (-1, size)), dim + 1, moved, axis)

    def joined(self, x: Tensor) -> Tensor:
        """``x``, of the shape of ``self.x``, as the tensor that this was made from."""
        flat = x.flatten(self.dim - 1, self.dim)
        return flat.movedim(-1, self.axis) if self.moved else flat

    def range(self, symmetric: bool) -> tuple[Tensor, Tensor]:
        """The extremes of each group; ``symmetric``: that far in both directions."""
        x = self.x.detach()
        if symmetric:
            hi = self._largest(x.abs())
            return -hi, hi
        return -self._largest(-x), self._largest(x)

    def _largest(self, x: Tensor) -> Tensor:
        size = x.shape[self.dim]
        if x.device.type == "cpu" and x.dtype == torch.float32 and 1 < size < _NARROW and self.dim == x.ndim - 1:
            return F.max_pool1d(x.reshape(-1, 1, x.shape[-2] * size), size).view(*x.shape[:-1], 1)
        return x.amax(self.dim, keepdim=True)


def _grouped(x: Tensor, scheme: Scheme, granularity: PerGroup) -> Tensor:
    pieces = list(_pieces(x, scheme, granularity))
    ranges = [groups.range(scheme.symmetric) for groups in pieces]
    top = None
    if scheme.scale == TWO_LEVELS:  # of each row
        found = [torch.maximum(-lo, hi).flatten(1).amax(1) for lo, hi in ranges]
        top = torch.stack(found).amax(0).view(-1, *[1] * x.ndim)
    quantize = straight_through if x.requires_grad else round_to_grid
    made = []
    for groups, (lo, hi) in zip(pieces, ranges, strict=True):
        grid, reciprocal = _grid(lo, hi, scheme, top)
        made.append(groups.joined(quantize(groups.x, *grid, scheme, reciprocal)).to(x.dtype))
    return made[0] if len(made) == 1 else torch.cat(made, granularity.axis)


def _grid(lo: Tensor, hi: Tensor, scheme: Scheme, top: Tensor | None) -> tuple[QParams, Tensor | None]:
    """Scales and zero points, and the reciprocals of the former where these are rounded in a way of their own."""
    if top is None:
        return grid_of(lo, hi, scheme), None
    found = two_levels(torch.maximum(-lo, hi).float(), FLOATS[scheme.number], top.float())
    return QParams(found.scale, torch.zeros_like(found.scale)), found.reciprocal


def _pieces(x: Tensor, scheme: Scheme, granularity: PerGroup) -> Iterator[_Groups]:
    """Every piece of x with groups of equal size, in the order in which they lie along the axis."""
    split = scheme.granularity
    for part in x.split(split.sizes, split.axis) if isinstance(split, Split) else (x,):
        length = part.shape[granularity.axis]
        for piece in part.split(granularity.lengths(length), granularity.axis):
            if size := min(granularity.length(length), piece.shape[granularity.axis]):
                yield _Groups.of(piece, size, granularity.axis)
