"""Granularity: the elements of a tensor that share one scale, a *group*.

A granularity may cut a tensor into *pieces*, whose sizes differ; the groups of one piece are of equal size. Every granularity
defines three things, so that each quantizing function has a single path: how many groups the pieces of a shape have, how a
tensor's pieces are arranged as [groups, n], and how one value a group is laid out to broadcast against the tensor. The last
also for grids that differ from row to row, one value a row and group: rows lie along the tensor's first dimension.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class PerTensor:
    """One group. A tensor [64, 48, 28, 28] has a scale of shape [1]."""

    def groups(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The number of groups of each piece of a tensor of this shape."""
        return (1,)

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """The values of x, each piece as [groups, n]."""
        return (x.reshape(1, -1),)

    def expand(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Values [groups] or [rows, groups], laid out to broadcast against a tensor of this shape."""
        return values if values.ndim == 1 else values.view(-1, *[1] * (len(shape) - 1))

    def __str__(self) -> str:
        return "per tensor"


@dataclass(frozen=True)
class PerChannel:
    """One group for each index along `axis`. A weight [48, 16, 3, 3] with axis 0 has a scale of shape [48]."""

    axis: int = 0

    def groups(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The number of groups of each piece of a tensor of this shape."""
        return (shape[self.axis],)

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """The values of x, each piece as [groups, n]."""
        return (x.movedim(self.axis, 0).flatten(1) if x.ndim > 1 else x.unsqueeze(1),)

    def expand(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Values [groups], laid out to broadcast against a tensor of this shape."""
        laid_out = [1] * len(shape)
        laid_out[self.axis] = -1
        return values.view(laid_out)

    def __str__(self) -> str:
        return "per channel"


@dataclass(frozen=True)
class PerGroup:
    """One group for every `size` consecutive elements along `axis`, every other index apart. A weight [48, 96, 3, 3] in groups
    of 64 along axis 1 has 48 x 2 x 3 x 3 groups: a piece of those of 64 elements, and one of those of 32.

    A last group that is short has the scale that it would have if it were padded with zeros. Groups of a piece are ordered by
    the other dimensions first, then along `axis`.

    Args:
        size: None: all elements along `axis`. An activation [n, tokens, features] then has a scale per token.
        axis: That along which a product sums up.
    """

    size: int | None = None
    axis: int = -1

    def groups(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The number of groups of each piece of a tensor of this shape."""
        whole, rest = self.lengths(shape[self.axis])
        others = math.prod(shape) // max(shape[self.axis], 1)
        return tuple(others * count for count in (whole // self.length(shape[self.axis]), min(rest, 1)) if count)

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """The values of x, each piece as [groups, n]."""
        length = x.shape[self.axis]
        parts = x.movedim(self.axis, -1).split(self.lengths(length), -1)
        return tuple(part.reshape(-1, min(self.length(length), part.shape[-1])) for part in parts if part.numel())

    def expand(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Values [groups], each as often as its group has elements: of the tensor's shape."""
        length = shape[self.axis]
        others = [size for dim, size in enumerate(shape) if dim != self.axis % len(shape)]
        parts = [
            part.view(*others, -1).repeat_interleave(min(self.length(length), own), -1)
            for part, own in zip(values.split(self.groups(shape)), filter(None, self.lengths(length)), strict=True)
        ]
        return torch.cat(parts, -1).movedim(-1, self.axis)

    def length(self, length: int) -> int:
        """The length of a group that is not short, along an axis of this length."""
        return self.size or length

    def lengths(self, length: int) -> tuple[int, int]:
        """The length that full groups cover along an axis of this length, and the length of the short last group."""
        rest = length % self.length(length)
        return length - rest, rest

    def __str__(self) -> str:
        return "per token" if self.size is None else f"groups of {self.size}"


Whole = PerTensor | PerChannel | PerGroup
"""The granularities that do not know of parts."""

GRANULARITIES: dict[str, type[Whole]] = {"per_tensor": PerTensor, "per_channel": PerChannel, "per_group": PerGroup}


@dataclass(frozen=True)
class Split:
    """Pieces of `sizes` along `axis`, each with groups of its own as `within` says; groups are ordered piece after piece.

    The input [64, 80, 28, 28] of a convolution that reads concat(h, skip) of 48 and 32 channels has a scale of shape [2] with
    sizes (48, 32); the convolution's weight [16, 80, 3, 3], within = PerChannel(0), one of shape [32].
    """

    sizes: tuple[int, ...]
    within: Whole = PerTensor()
    axis: int = 1

    def __post_init__(self) -> None:
        if isinstance(self.within, PerChannel) and self.within.axis == self.axis:
            raise ValueError(f"axis {self.axis} is split: it cannot have a group for each index too")

    def groups(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The number of groups of each piece of a tensor of this shape."""
        return tuple(count for own in self._shapes(shape) for count in self.within.groups(own))

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """The values of x, each piece as [groups, n]."""
        return tuple(piece for part in x.split(self.sizes, self.axis) for piece in self.within.pieces(part))

    def expand(self, values: Tensor, shape: Sequence[int]) -> Tensor:
        """Values [groups] or [rows, groups], laid out to broadcast against a tensor of this shape."""
        parts, shapes = [], self._shapes(shape)
        counts = [sum(self.within.groups(own)) for own in shapes]
        for size, own, part in zip(self.sizes, shapes, values.split(counts, -1), strict=True):
            along = [size if dim == self.axis else 1 for dim in range(len(shape))]
            laid_out = self.within.expand(part, own)
            parts.append(laid_out.expand(torch.broadcast_shapes(laid_out.shape, along)))
        return torch.cat(parts, self.axis)

    def _shapes(self, shape: Sequence[int]) -> list[tuple[int, ...]]:
        """The shapes of the parts of a tensor of this shape."""
        return [(*shape[: self.axis], size, *shape[self.axis + 1 :]) for size in self.sizes]

    def __str__(self) -> str:
        return f"{self.within}, parts {'+'.join(map(str, self.sizes))}"


Granularity = Whole | Split


def whole(granularity: Granularity) -> Whole:
    """The granularity of each part, where a tensor is quantized in parts."""
    return granularity.within if isinstance(granularity, Split) else granularity
