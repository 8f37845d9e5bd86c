"""Quantization schemes as values.

A scheme says which grid a tensor is rounded to, and nothing about how that grid is fitted:

    bits         b, the number of levels being 2^b
    granularity  which elements share one scale: a *group*
    symmetric    integers -2^(b-1) .. 2^(b-1)-1 with zero point 0, else 0 .. 2^b-1 with a zero point of their own

A granularity may cut a tensor into *pieces*, whose sizes differ; the groups of one piece are of equal size. Every granularity
answers three questions, so that each quantizing function has a single path: how many groups the pieces of a shape have, how
a tensor's pieces are arranged as [groups, n], and how one value a group is laid out to broadcast against the tensor.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor

from qdexp.errors import UserError


@dataclass(frozen=True)
class PerTensor:
    """One group. A tensor [64, 48, 28, 28] has a scale of shape [1]."""

    def groups(self, shape: Sequence[int]) -> tuple[int, ...]:
        """The number of groups of each piece of a tensor of this shape."""
        return (1,)

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """The values of x, each piece as [groups, n]."""
        return (x.reshape(1, -1),)

    def expand(self, values: Tensor, ndim: int) -> Tensor:
        """One value a group, [groups], laid out to broadcast against a tensor of `ndim` dimensions."""
        return values


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

    def expand(self, values: Tensor, ndim: int) -> Tensor:
        """One value a group, [groups], laid out to broadcast against a tensor of `ndim` dimensions."""
        shape = [1] * ndim
        shape[self.axis] = -1
        return values.view(shape)


Whole = PerTensor | PerChannel
"""The granularities that leave a tensor in one piece."""

GRANULARITIES: dict[str, type[Whole]] = {"per_tensor": PerTensor, "per_channel": PerChannel}


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
        return self.within.groups(shape) * len(self.sizes)

    def pieces(self, x: Tensor) -> tuple[Tensor, ...]:
        """The values of x, each piece as [groups, n]."""
        return tuple(piece for part in x.split(self.sizes, self.axis) for piece in self.within.pieces(part))

    def expand(self, values: Tensor, ndim: int) -> Tensor:
        """One value a group, [groups], laid out to broadcast against a tensor of `ndim` dimensions."""
        parts = []
        for size, part in zip(self.sizes, values.view(len(self.sizes), -1), strict=True):
            along = [size if dim == self.axis else 1 for dim in range(ndim)]
            laid_out = self.within.expand(part, ndim)
            parts.append(laid_out.expand(torch.broadcast_shapes(laid_out.shape, along)))
        return torch.cat(parts, self.axis)


Granularity = Whole | Split


@dataclass(frozen=True)
class Scheme:
    """A uniform affine grid of `bits` bits, 2 to 16 (more than 8 only pays for softmax outputs)."""

    bits: int
    granularity: Granularity = field(default_factory=PerTensor)
    symmetric: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise UserError(f"a quantizer of {self.bits} bits was asked for: use 2 to 16, or 32 to leave values unquantized")

    @property
    def qmin(self) -> int:
        """The smallest integer."""
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> int:
        """The largest integer."""
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def dtype(self) -> torch.dtype:
        """The smallest dtype of torch that holds every integer of the grid and computes everywhere."""
        if self.bits > 8:
            return torch.int32
        return torch.int8 if self.symmetric else torch.uint8

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, e.g. {"bits": 4, "symmetric": False, "granularity": {"kind": "per_channel", "axis": 0}}."""
        granularity = self.granularity
        if isinstance(granularity, Split):
            plain = {"kind": "split", **asdict(granularity), "within": _to_dict(granularity.within)}
        else:
            plain = _to_dict(granularity)
        return {"bits": self.bits, "symmetric": self.symmetric, "granularity": plain}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Scheme":
        """The inverse of `to_dict`."""
        plain = values["granularity"]
        granularity: Granularity
        if plain["kind"] == "split":
            granularity = Split(tuple(plain["sizes"]), _from_dict(plain["within"]), plain["axis"])
        else:
            granularity = _from_dict(plain)
        return cls(values["bits"], granularity, values["symmetric"])


def _to_dict(granularity: Whole) -> dict[str, Any]:
    kind = next(kind for kind, cls in GRANULARITIES.items() if type(granularity) is cls)
    return {"kind": kind, **asdict(granularity)}


def _from_dict(values: Mapping[str, Any]) -> Whole:
    options = dict(values)
    return GRANULARITIES[options.pop("kind")](**options)
