"""Ranges without their tails, found exactly in bounded memory.

Nothing is sorted or kept: the bits of two values of each group are selected from the highest on (radix selection), some in each
pass, by counting.
"""

import math
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor

from qdexp.quant.ranges import RangeEstimator, RangeStream
from qdexp.quant.scheme import Scheme


@dataclass(frozen=True)
class Percentile(RangeEstimator):
    """The range without its tails: hi is the smallest value that at least q % of the values do not exceed, lo the largest one
    that at least q % do not fall below.

    Both are values that were seen, exactly, however these were cut into parts: order statistics of nearest rank, found by radix
    selection in bounded memory, whatever the number of values. They are never interpolated: of fewer than 100 / (100 - q)
    values a group, q takes away none. q = 100 is the min-max range.
    """

    q: float = 99.9

    def __post_init__(self) -> None:
        """Raises ValueError where no range is left between the tails."""
        if not 50 < self.q <= 100:
            raise ValueError(f"q={self.q} must be above 50 and at most 100")

    def start(self, scheme: Scheme, groups: int) -> "PercentileStream":
        """A stream of two passes; of four where there are many groups, as of weights."""
        return PercentileStream(Fraction(str(self.q)) / 100, groups)


class PercentileStream(RangeStream):
    """Radix selection of two order statistics of each group: the bits of a value in float32, put so that integers stand in the
    order of the numbers, are found from the highest on, some in each pass.

    A pass counts, of the values whose higher bits are those found so far, how many have which bits next. That is 512 KiB a
    group and end where there are few groups (16 bits a pass), else 2 KiB (8 bits).
    """

    MANY = 16
    """Groups from which on a pass finds fewer bits."""

    def __init__(self, share: Fraction, groups: int) -> None:
        self.bits = 16 if groups < self.MANY else 8
        self.passes = 32 // self.bits
        self._share = share
        self._left = 32  # bits still to be found
        self._found: Tensor | None = None  # of both ends, lo first: the bits found so far, int64 [2, groups]
        self._rank = torch.empty(0)  # of the value looked for among those that have these bits, from 0, int64 [2, groups]
        self._counts: Tensor | None = None  # int64 [2, groups, 2^bits]; in the first pass both ends share theirs, [1, ...]
        self._nan: Tensor | None = None  # where a NaN was among the values, bool [groups]

    def observe(self, x: Tensor) -> None:
        """Count, a few columns at a time. Once all bits are found, nothing."""
        if not self._left:
            return
        if self._found is None:
            nan = x.isnan().any(1)
            self._nan = nan if self._nan is None else self._nan | nan
        groups = len(x)
        for part in x.split(max(2**20, groups * 2**self.bits) // groups, dim=1):
            counts = self._count(_ordered(part.float()))
            self._counts = counts if self._counts is None else self._counts.add_(counts)

    def _count(self, keys: Tensor) -> Tensor:
        """Count the next bits of the numbers that have the bits found so far."""
        groups, size = len(keys), 2**self.bits
        bins = torch.arange(groups, device=keys.device)[:, None] * size + ((keys >> (self._left - self.bits)) & (size - 1))
        counted = [bins.flatten()] if self._found is None else [bins[keys >> self._left == one[:, None]] for one in self._found]
        return torch.stack([one.bincount(minlength=groups * size).view(groups, size) for one in counted])

    def end_pass(self) -> None:
        """Find the next bits of both ends."""
        if self._counts is None:
            return
        if self._found is None:
            n = int(self._counts[0, 0].sum())  # groups are of one size
            last = math.ceil(self._share * n) - 1
            ranks = torch.tensor([n - 1 - last, last], device=self._counts.device)
            self._rank = ranks[:, None].expand(2, len(self._counts[0]))
            self._found = torch.zeros_like(self._rank)
        below = self._counts.cumsum(-1).expand(2, -1, -1).contiguous()
        digit = torch.searchsorted(below, self._rank[..., None].contiguous(), right=True)
        before = below.gather(-1, (digit - 1).clamp_min(0)) * (digit > 0)
        self._rank = self._rank - before.squeeze(-1)
        self._found = (self._found << self.bits) | digit.squeeze(-1)
        self._left, self._counts = self._left - self.bits, None

    def range(self) -> tuple[Tensor, Tensor]:
        """The two order statistics; NaN where a value was one. Raises ValueError before the last pass has ended."""
        if self._left or self._found is None or self._nan is None:
            raise ValueError("not all passes were completed")
        lo, hi = _unordered(self._found).masked_fill(self._nan, math.nan)
        return lo, hi


def _ordered(x: Tensor) -> Tensor:
    """The bits of float32 numbers as integers from 0 to 2^32 - 1, int64, in the order of the numbers."""
    bits = x.contiguous().view(torch.int32).long()
    return torch.where(bits < 0, ~bits, bits + 2**31)


def _unordered(keys: Tensor) -> Tensor:
    """The inverse of `_ordered`."""
    bits = torch.where(keys < 2**31, ~keys, keys - 2**31)
    return bits.to(torch.int32).view(torch.float32)
