"""Quantization schemes as values.

A scheme says which grid a tensor is rounded to, and nothing about how that grid is fitted:

    bits         b, the number of levels being 2^b
    granularity  which elements share one scale: a *group*
    symmetric    integers -2^(b-1) .. 2^(b-1)-1 with zero point 0, else 0 .. 2^b-1 with a zero point of their own
    time         whether the grid of an activation depends on when it is used

A granularity may cut a tensor into *pieces*, whose sizes differ; the groups of one piece are of equal size. Every granularity
answers three questions, so that each quantizing function has a single path: how many groups the pieces of a shape have, how
a tensor's pieces are arranged as [groups, n], and how one value a group is laid out to broadcast against the tensor. The last
also for grids that differ from row to row, one value a row and group: rows lie along the tensor's first dimension.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

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
        """Values [groups] or [rows, groups], laid out to broadcast against a tensor of `ndim` dimensions."""
        return values if values.ndim == 1 else values.view(-1, *[1] * (ndim - 1))

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

    def expand(self, values: Tensor, ndim: int) -> Tensor:
        """Values [groups], laid out to broadcast against a tensor of `ndim` dimensions."""
        shape = [1] * ndim
        shape[self.axis] = -1
        return values.view(shape)

    def __str__(self) -> str:
        return "per channel"


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
        """Values [groups] or [rows, groups], laid out to broadcast against a tensor of `ndim` dimensions."""
        parts = []
        for size, part in zip(self.sizes, values.unflatten(-1, (len(self.sizes), -1)).unbind(-2), strict=True):
            along = [size if dim == self.axis else 1 for dim in range(ndim)]
            laid_out = self.within.expand(part, ndim)
            parts.append(laid_out.expand(torch.broadcast_shapes(laid_out.shape, along)))
        return torch.cat(parts, self.axis)

    def __str__(self) -> str:
        return f"{self.within}, parts {'+'.join(map(str, self.sizes))}"


Granularity = Whole | Split


@dataclass(frozen=True)
class TimeGroups:
    """Contiguous groups of timesteps, each with a grid of its own.

    Args:
        edges: k finite numbers, ascending, in the network's own units of t. They make k + 1 groups: group g holds
            edges[g - 1] < t <= edges[g]; what lies beyond an end is in the outermost group there.

    Raises:
        UserError: The edges are none, not finite or not ascending.
    """

    edges: tuple[float, ...]

    def __post_init__(self) -> None:
        object.__setattr__(self, "edges", tuple(float(edge) for edge in self.edges))
        ascending = all(one < other for one, other in pairwise(self.edges))
        if not self.edges or not ascending or not all(map(math.isfinite, self.edges)):
            raise UserError(
                f"groups of timesteps have the edges {list(self.edges)}: give finite numbers, ascending, at least one"
            )

    def __len__(self) -> int:
        return len(self.edges) + 1

    def __str__(self) -> str:
        return f"{len(self)} timestep groups"

    def index(self, t: Tensor) -> Tensor:
        """The groups of timesteps of any dtype and shape, int64. Edges are compared as float32 numbers, on t's device, and no
        constant is copied there."""
        t = t.float()
        groups = torch.zeros_like(t, dtype=torch.int64)
        for edge in self.edges:
            groups = groups + (t > edge)
        return groups


Time = Literal["static", "dynamic"] | TimeGroups
"""When a grid holds: always; for one call and one row, whose range it spans; or in a group of timesteps."""


@dataclass(frozen=True)
class Scheme:
    """A uniform affine grid of `bits` bits, 2 to 16 (more than 8 only pays for softmax outputs).

    With `time` "dynamic" each row, an index along the first dimension, has a grid of its own in each piece, from its smallest
    to its largest value there: a grid for the whole batch would make a row depend on its company.
    """

    bits: int
    granularity: Granularity = field(default_factory=PerTensor)
    symmetric: bool = False
    time: Time = "static"

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 16:
            raise UserError(f"a quantizer of {self.bits} bits was asked for: use 2 to 16, or 32 to leave values unquantized")
        whole = self.granularity.within if isinstance(self.granularity, Split) else self.granularity
        if self.time != "static" and not isinstance(whole, PerTensor):
            raise UserError(
                "a grid for each channel cannot be dynamic or follow the timestep: use per_tensor, or a static grid"
            )

    def __str__(self) -> str:
        return ", ".join([f"{self.bits} bits", *self.traits])

    @property
    def traits(self) -> list[str]:
        """In words, what it is beside its bits: e.g. ``["per tensor, parts 48+48", "symmetric", "4 timestep groups"]``."""
        return [str(self.granularity), *(["symmetric"] if self.symmetric else []), *self.timing]

    @property
    def timing(self) -> list[str]:
        """In words, when it holds, where that is not always."""
        return [] if self.time == "static" else [str(self.time)]

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
        """Plain values for JSON, e.g. {"bits": 4, "symmetric": False, "granularity": {"kind": "per_channel", "axis": 0}}; a
        scheme that is not static has a "time" too, e.g. {"kind": "groups", "edges": [250.0]}."""
        granularity = self.granularity
        if isinstance(granularity, Split):
            plain = {"kind": "split", **asdict(granularity), "within": _to_dict(granularity.within)}
        else:
            plain = _to_dict(granularity)
        time = {} if self.time == "static" else {"time": _time_to_dict(self.time)}
        return {"bits": self.bits, "symmetric": self.symmetric, "granularity": plain, **time}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Scheme":
        """The inverse of `to_dict`."""
        plain = values["granularity"]
        granularity: Granularity
        if plain["kind"] == "split":
            granularity = Split(tuple(plain["sizes"]), _from_dict(plain["within"]), plain["axis"])
        else:
            granularity = _from_dict(plain)
        time = _time_from_dict(values["time"]) if "time" in values else "static"
        return cls(values["bits"], granularity, values["symmetric"], time)


def _to_dict(granularity: Whole) -> dict[str, Any]:
    kind = next(kind for kind, cls in GRANULARITIES.items() if type(granularity) is cls)
    return {"kind": kind, **asdict(granularity)}


def _from_dict(values: Mapping[str, Any]) -> Whole:
    options = dict(values)
    return GRANULARITIES[options.pop("kind")](**options)


def _time_to_dict(time: Time) -> dict[str, Any]:
    return {"kind": "groups", "edges": list(time.edges)} if isinstance(time, TimeGroups) else {"kind": time}


def _time_from_dict(values: Mapping[str, Any]) -> Time:
    if values["kind"] == "groups":
        return TimeGroups(tuple(values["edges"]))
    if values["kind"] != "dynamic":
        raise ValueError(f"a scheme has the time {values['kind']!r}")
    return "dynamic"
