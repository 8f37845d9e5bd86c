"""Quantization schemes as values.

A scheme says which grid a tensor is rounded to, and nothing about how that grid is fitted:

    bits         b, the number of levels being 2^b
    granularity  which elements share one scale: a *group*
    symmetric    integers -2^(b-1) .. 2^(b-1)-1 with zero point 0, else 0 .. 2^b-1 with a zero point of their own

Every granularity answers three questions, so that each quantizing function has a single path: how many groups a shape has,
how a tensor is arranged as [groups, n], and how one value a group is laid out to broadcast against the tensor.
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

    def groups(self, shape: Sequence[int]) -> int:
        """The number of groups of a tensor of this shape."""
        return 1

    def arrange(self, x: Tensor) -> Tensor:
        """The values of x as [groups, n]."""
        return x.reshape(1, -1)

    def expand(self, values: Tensor, ndim: int) -> Tensor:
        """One value a group, [groups], laid out to broadcast against a tensor of `ndim` dimensions."""
        return values


@dataclass(frozen=True)
class PerChannel:
    """One group for each index along `axis`. A weight [48, 16, 3, 3] with axis 0 has a scale of shape [48]."""

    axis: int = 0

    def groups(self, shape: Sequence[int]) -> int:
        """The number of groups of a tensor of this shape."""
        return shape[self.axis]

    def arrange(self, x: Tensor) -> Tensor:
        """The values of x as [groups, n]."""
        return x.movedim(self.axis, 0).flatten(1) if x.ndim > 1 else x.unsqueeze(1)

    def expand(self, values: Tensor, ndim: int) -> Tensor:
        """One value a group, [groups], laid out to broadcast against a tensor of `ndim` dimensions."""
        shape = [1] * ndim
        shape[self.axis] = -1
        return values.view(shape)


Granularity = PerTensor | PerChannel
GRANULARITIES: dict[str, type[Granularity]] = {"per_tensor": PerTensor, "per_channel": PerChannel}


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
        kind = next(kind for kind, cls in GRANULARITIES.items() if type(self.granularity) is cls)
        return {"bits": self.bits, "symmetric": self.symmetric, "granularity": {"kind": kind, **asdict(self.granularity)}}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> "Scheme":
        """The inverse of `to_dict`."""
        options = dict(values["granularity"])
        granularity = GRANULARITIES[options.pop("kind")](**options)
        return cls(values["bits"], granularity, values["symmetric"])
