"""Range estimation: from a stream of values to the interval [lo, hi] that the grid shall span.

Weights and activations go through the same two objects. A *range estimator* is configuration: a small frozen dataclass, made by
Hydra from its `_target_`. For each piece of a tensor (most have one) it starts a *range stream*, which is shown the values,
arranged [groups, n], in any number of parts and in as many passes as it needs, and then gives one range per group.

An estimator of your own needs one file on the Python path and its `_target_` in a quantizer's YAML. docs/extending.md has
standard deviations as an example.
"""

import math
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from qdexp.quant.affine import qparams_from_range, round_to_grid
from qdexp.quant.scheme import Scheme


class RangeStream(ABC):
    """The values of one piece of a tensor, seen part by part.

    Attributes:
        passes: How often the whole stream must be shown.
    """

    passes: int = 1

    @abstractmethod
    def observe(self, x: Tensor) -> None:
        """Take in one part of the values.

        Args:
            x: The values, [groups, n] with n > 0.
        """

    def end_pass(self) -> None:  # noqa: B027 - optional
        """End a pass over all the values."""

    @abstractmethod
    def range(self) -> tuple[Tensor, Tensor]:
        """Return the range, once, after the last pass.

        Returns:
            (lo, hi), each [groups]. The range need not contain zero, although the grid will.
        """


class RangeEstimator(ABC):
    """Base class of range estimators: frozen dataclasses whose fields are their options."""

    @abstractmethod
    def start(self, scheme: Scheme, groups: int) -> RangeStream:
        """Start the estimation for one piece of a tensor.

        Args:
            scheme: The scheme that the tensor will be quantized with.
            groups: The number of groups in the piece.

        Returns:
            A fresh stream, which is shown the values.
        """


class Observer:
    """The range of one tensor, from a range stream for each of its pieces. Used like a stream."""

    def __init__(self, estimator: RangeEstimator, scheme: Scheme, groups: Sequence[int]) -> None:
        """groups: of each piece."""
        self.granularity = scheme.granularity
        self.streams = [estimator.start(scheme, count) for count in groups]
        self.passes = max(stream.passes for stream in self.streams)

    def observe(self, x: Tensor) -> None:
        """Take in one part of the tensor's values, with every piece in it."""
        for stream, piece in zip(self.streams, self.granularity.pieces(x), strict=True):
            stream.observe(piece)

    def end_pass(self) -> None:
        """End a pass; must be called after each pass over all the values."""
        for stream in self.streams:
            stream.end_pass()

    def range(self) -> tuple[Tensor, Tensor]:
        """(lo, hi), each [groups of all pieces]. To be called once, after the last pass."""
        lo, hi = (torch.cat(ends) for ends in zip(*(stream.range() for stream in self.streams), strict=True))
        return lo, hi


class GroupedObserver:
    """The ranges of one tensor in each group of timesteps, from an observer for each, which is shown the rows of its group.

    A group that has seen no row has the range of the nearest one that has, by number, the lower of two.
    """

    def __init__(self, observers: Sequence[Observer]) -> None:
        self.observers = observers
        self.passes = observers[0].passes
        self._seen: set[int] = set()

    def observe(self, x: Tensor, groups: Tensor) -> None:
        """Take in some rows, [rows, ...]. groups: int64 [rows]; or [1], of all."""
        numbers = groups.unique().tolist()
        self._seen.update(numbers)
        for number in numbers:
            self.observers[number].observe(x if len(numbers) == 1 else x[groups == number])

    def end_pass(self) -> None:
        """End a pass; must be called after each pass over all the values."""
        for number in self._seen:
            self.observers[number].end_pass()

    def range(self) -> tuple[Tensor, Tensor]:
        """(lo, hi), each [time groups, groups of all pieces]. Raises ValueError if nothing was observed."""
        if not self._seen:
            raise ValueError("no values were observed")
        found = {number: self.observers[number].range() for number in self._seen}
        nearest = (min((abs(seen - own), seen) for seen in found)[1] for own in range(len(self.observers)))
        lo, hi = (torch.stack(ends) for ends in zip(*(found[number] for number in nearest), strict=True))
        return lo, hi


def estimate(x: Tensor, scheme: Scheme, estimator: RangeEstimator) -> tuple[Tensor, Tensor]:
    """The range of a tensor that is at hand whole, such as a weight: (lo, hi), each [groups]."""
    observer = Observer(estimator, scheme, scheme.granularity.groups(x.shape))
    for _ in range(observer.passes):
        observer.observe(x)
        observer.end_pass()
    return observer.range()


@dataclass(frozen=True)
class MinMax(RangeEstimator):
    """The range from the smallest to the largest value."""

    def start(self, scheme: Scheme, groups: int) -> "MinMaxStream":
        """A stream of one pass."""
        return MinMaxStream()


class MinMaxStream(RangeStream):
    """The extremes so far."""

    def __init__(self) -> None:
        self._range: tuple[Tensor, Tensor] | None = None

    def observe(self, x: Tensor) -> None:
        """Widen the range."""
        lo, hi = x.float().aminmax(dim=1)
        if self._range is not None:
            lo, hi = torch.minimum(lo, self._range[0]), torch.maximum(hi, self._range[1])
        self._range = lo, hi

    def range(self) -> tuple[Tensor, Tensor]:
        """The extremes. Raises ValueError if nothing was observed."""
        if self._range is None:
            raise ValueError("no values were observed")
        return self._range


@dataclass(frozen=True)
class NormSearch(RangeEstimator):
    """The shrunk min-max range that loses least: of r * [lo, hi], the one with the least sum of |x - x_hat|^p.

    [lo, hi] is the min-max range extended to contain zero; for a symmetric scheme it is [-m, m], so the ranges searched are
    those that the grid can have. Two passes: the extremes, then the sums of all candidates at once.

    Attributes:
        p: The exponent: 2.4 in Q-Diffusion (Li et al. 2023, arXiv 2302.04304), 2 for the least mean squared error (MSE).
        candidates: The factors r that are tried.
    """

    p: float = 2.4
    candidates: tuple[float, ...] = tuple(percent / 100 for percent in range(100, 20, -1))

    def __post_init__(self) -> None:
        """Raises ValueError where the options define no least error."""
        if not 0 < self.p < math.inf or not self.candidates or min(self.candidates) <= 0:
            raise ValueError(f"p={self.p} and candidates={list(self.candidates)} must be above 0")

    def start(self, scheme: Scheme, groups: int) -> "NormSearchStream":
        """A stream of two passes."""
        return NormSearchStream(self.p, tuple(self.candidates), scheme)


class NormSearchStream(RangeStream):
    """First the extremes, then the error sums of every candidate."""

    passes = 2

    def __init__(self, p: float, candidates: tuple[float, ...], scheme: Scheme) -> None:
        self.p, self.candidates, self.scheme = p, candidates, scheme
        self._extremes = MinMaxStream()
        self._ranges: tuple[Tensor, Tensor] | None = None  # every candidate's lo and hi, [groups, candidates]
        self._errors = torch.empty(0)  # the sums so far, float64 [groups, candidates]

    def observe(self, x: Tensor) -> None:
        """Widen the extremes in the first pass, add to the error sums in the second."""
        if self._ranges is None:
            self._extremes.observe(x)
        else:
            self._errors += norm_errors(x, *self._ranges, self.scheme, self.p)

    def end_pass(self) -> None:
        """Lay out the candidates after the first pass."""
        if self._ranges is None:
            lo, hi = self._extremes.range()
            lo, hi = lo.clamp_max(0), hi.clamp_min(0)
            if self.scheme.symmetric:
                hi = torch.maximum(-lo, hi)
                lo = -hi
            shrink = torch.tensor(self.candidates, device=lo.device)
            self._ranges = torch.outer(lo, shrink), torch.outer(hi, shrink)
            self._errors = torch.zeros_like(self._ranges[0], dtype=torch.float64)

    def range(self) -> tuple[Tensor, Tensor]:
        """The best candidate of each group; of equals the widest. Raises ValueError before the first pass has ended."""
        if self._ranges is None:
            raise ValueError("no pass was completed")
        best = self._errors.argmin(dim=1, keepdim=True)
        lo, hi = (ends.gather(1, best).squeeze(1) for ends in self._ranges)
        return lo, hi


def norm_errors(x: Tensor, lo: Tensor, hi: Tensor, scheme: Scheme, p: float, elements: int | None = None) -> Tensor:
    """Sum of |x - x_hat|^p over n for each group and candidate range.

    x: [groups, n]; lo, hi: [groups, candidates]; result: float64 [groups, candidates]. Works on chunks of at most `elements`
    numbers; by default they fit a core's cache, or on a GPU fill the device.
    """
    elements = elements or (2**16 if x.device.type == "cpu" else 2**24)
    scale, zero_point = qparams_from_range(lo, hi, scheme)
    errors = torch.zeros_like(scale, dtype=torch.float64)
    groups, candidates = scale.shape
    for g, c, n in _chunks(groups, candidates, x.shape[1], elements):
        part = x[g, None, n].float()
        error = round_to_grid(part, scale[g, c, None], zero_point[g, c, None], scheme).sub_(part)
        errors[g, c] += _abs_power(error, p).sum(-1, dtype=torch.float64)
    return errors


def _chunks(groups: int, candidates: int, n: int, elements: int) -> Iterator[tuple[slice, slice, slice]]:
    """Cut [groups, candidates, n] into boxes of at most `elements` numbers, whole rows first."""
    columns = min(n, elements)
    rows = min(groups, elements // columns)
    depth = elements // (rows * columns)
    for g in range(0, groups, rows):
        for start in range(0, n, columns):
            for c in range(0, candidates, depth):
                yield slice(g, g + rows), slice(c, c + depth), slice(start, start + columns)


def _abs_power(x: Tensor, p: float) -> Tensor:
    """|x|^p, in place: 2^(p/2 log2 x^2), several times faster than pow on a CPU. Exactly 0 at 0."""
    return x.square_() if p == 2 else x.square_().log2_().mul_(p / 2).exp2_()
