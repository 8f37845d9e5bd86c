"""Quantization schemes as values.

A scheme says which grid a tensor is rounded to, and nothing about how that grid is fitted:

    number       what an element is: an integer, or a floating point number of few bits
    bits         b, of a number: a grid of integers has 2^b levels
    granularity  which elements share one scale: a *group*, see `granularity`
    symmetric    integers -2^(b-1) .. 2^(b-1)-1 with zero point 0, else 0 .. 2^b-1 with a zero point of their own
    scale        how many bits a scale has itself, see `scales`
    time         whether the grid of an activation depends on when it is used
"""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from typing import Any, Literal

import torch
from torch import Tensor

from qdexp.errors import UserError
from qdexp.quant.floats import FLOATS
from qdexp.quant.granularity import GRANULARITIES, Granularity, PerChannel, PerGroup, PerTensor, Split, Whole, whole
from qdexp.quant.scales import SCALE_TYPES

__all__ = ["Granularity", "PerChannel", "PerGroup", "PerTensor", "Scheme", "Split", "Time", "TimeGroups", "Whole"]

INT = "int"
NUMBERS = (INT, *FLOATS)
POWERS, TWO_LEVELS = "e8m0", "e4m3"
"""Scales that only floating point numbers have."""


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
    """A kind of grid: integers of 2 to 16 bits (more than 8 only pays for softmax outputs), or floating point numbers, which
    are symmetric.

    Attributes:
        bits: The bits of an element.
        granularity: The elements that share a scale.
        symmetric: Whether the zero point is 0.
        time: When a grid holds. With "dynamic" each row, an index along the first dimension, has a grid of its own in each
            piece, from its smallest to its largest value there, since a grid for the whole batch would make a row depend on its
            company; with ``PerGroup`` so does each group of a row, see ``dynamic``.
        number: Integers, or the name of the floating point numbers, such as ``e4m3``.
        scale: The type of the scales.
    """

    bits: int
    granularity: Granularity = field(default_factory=PerTensor)
    symmetric: bool = False
    time: Time = "static"
    number: str = INT
    scale: str = "float32"

    def __post_init__(self) -> None:
        if self.number not in NUMBERS or self.scale not in SCALE_TYPES:
            raise UserError(
                f"a quantizer of numbers {self.number} with scales {self.scale} was asked for: use numbers of "
                f"{', '.join(NUMBERS)} and scales of {', '.join(SCALE_TYPES)}"
            )
        if self.number == INT and not 2 <= self.bits <= 16:
            raise UserError(f"a quantizer of {self.bits} bits was asked for: use 2 to 16, or 32 to leave values unquantized")
        if self.number != INT and (self.bits != FLOATS[self.number].bits or not self.symmetric):
            raise UserError(f"numbers of {self.number} are symmetric and have {FLOATS[self.number].bits} bits, not {self.bits}")
        if self.scale == POWERS and self.number == INT:
            raise UserError(f"scales in {self.scale} are those of floating point numbers; use another for integers")
        if self.scale == TWO_LEVELS and (self.number != "e2m1" or isinstance(self.granularity, PerTensor)):
            raise UserError(
                f"scales in {self.scale} are those of groups of e2m1; use another for {self.number}, {self.granularity}"
            )
        if self.time != "static" and not isinstance(whole(self.granularity), PerTensor | PerGroup):
            raise UserError(
                "a grid for each channel cannot be dynamic or follow the timestep: use per_tensor, or a static grid"
            )
        if isinstance(self.time, TimeGroups) and not isinstance(whole(self.granularity), PerTensor):
            raise UserError("a grid for each token or group cannot follow the timestep: use per_tensor, or a dynamic grid")

    def __str__(self) -> str:
        return ", ".join([f"{self.bits} bits", *self.traits])

    @property
    def traits(self) -> list[str]:
        """The scheme beside its bits, in words: e.g. ``["per tensor, parts 48+48", "symmetric", "4 timestep groups"]``, or
        ``["E2M1", "groups of 32", "scales in E8M0", "dynamic"]``."""
        number = [] if self.is_integer else [self.number.upper()]
        scale = [] if self.scale == "float32" else [f"scales in {self.scale.replace('e', 'E').replace('m', 'M')}"]
        symmetric = ["symmetric"] if self.symmetric and self.is_integer else []
        return [*number, str(self.granularity), *symmetric, *scale, *self.timing]

    @property
    def timing(self) -> list[str]:
        """When the scheme holds, in words, where that is not always."""
        return [] if self.time == "static" else [str(self.time)]

    @property
    def is_integer(self) -> bool:
        """Whether its levels are integers."""
        return self.number == INT

    @property
    def qmin(self) -> float:
        """The smallest level: of integers an integer."""
        if not self.is_integer:
            return -FLOATS[self.number].largest
        return -(2 ** (self.bits - 1)) if self.symmetric else 0

    @property
    def qmax(self) -> float:
        """The largest level."""
        if not self.is_integer:
            return FLOATS[self.number].largest
        return 2 ** (self.bits - 1) - 1 if self.symmetric else 2**self.bits - 1

    @property
    def dtype(self) -> torch.dtype:
        """The smallest dtype of torch that holds every code of the grid and computes everywhere: its integers, or the bits of
        its floating point numbers."""
        if self.bits > 8:
            return torch.int32
        return torch.int8 if self.symmetric and self.is_integer else torch.uint8

    def to_dict(self) -> dict[str, Any]:
        """Plain values for JSON, e.g. {"bits": 4, "symmetric": False, "granularity": {"kind": "per_channel", "axis": 0}}; what
        is not static has a "time" too, e.g. {"kind": "groups", "edges": [250.0]}, what is no integer a "number", and a scale
        that is no float32 its type."""
        granularity = self.granularity
        if isinstance(granularity, Split):
            plain = {"kind": "split", **asdict(granularity), "within": _to_dict(granularity.within)}
        else:
            plain = _to_dict(granularity)
        more = {
            **({} if self.time == "static" else {"time": _time_to_dict(self.time)}),
            **({} if self.is_integer else {"number": self.number}),
            **({} if self.scale == "float32" else {"scale": self.scale}),
        }
        return {"bits": self.bits, "symmetric": self.symmetric, "granularity": plain, **more}

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
        number, scale = values.get("number", INT), values.get("scale", "float32")
        return cls(values["bits"], granularity, values["symmetric"], time, number, scale)


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
