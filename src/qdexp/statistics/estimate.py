"""Numbers with intervals, by the delete-group jackknife.

The n samples are cut into G groups; theta is computed from all of them and, for each g, without the g-th:

    var(theta) = (G - 1) / G * sum_g (theta_(g) - mean theta_(.))^2         Kott, J. Official Stat. 17 (2001), eq. 2

An interval is theta +- t_(G-1) sqrt(var). It is about the expectation of theta *at this n*: the bias of FID, which a
bootstrap adds once more, is the same in theta and stays in it. Sample i starts from the same noise in every cell, so group g
is the same noise in every cell too: differences and means of estimates are those of their replicates, and what two cells have
in common cancels.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import t as student

Floats = NDArray[np.float64]

GROUPS = 32
LEVEL = 0.95


@dataclass(frozen=True)
class Interval:
    """A value and the ends of its 95 % interval; NaN where an end is not known.

    Attributes:
        value: The value.
        low: The lower end.
        high: The upper end.
    """

    value: float
    low: float
    high: float

    @property
    def half(self) -> float:
        """Half the width of the interval."""
        return (self.high - self.low) / 2


@dataclass(frozen=True)
class Estimate:
    """A number of one cell with its jackknife replicates. ``a - b`` is the paired difference of two cells.

    Attributes:
        value: The number, from all images.
        replicates: The same number without each of the G groups of images, [G].
    """

    value: float
    replicates: Floats

    def __sub__(self, other: "Estimate") -> "Estimate":
        """The paired difference. Raises ValueError where the groups are not the same in number."""
        if self.replicates.shape != other.replicates.shape:
            raise ValueError(f"{len(self.replicates)} groups and {len(other.replicates)}: not the same samples")
        return Estimate(self.value - other.value, self.replicates - other.replicates)

    @property
    def variance(self) -> float:
        groups = len(self.replicates)
        return float((groups - 1) * self.replicates.var())

    def interval(self) -> Interval:
        """Return the 95 % interval over the images."""
        return _interval(self.value, self.variance, len(self.replicates) - 1)


def pool(seeds: Sequence[Estimate]) -> Interval:
    """The mean over ``seeds``, whose images share their noise, with an interval over samples and seeds.

    Two sources of variation: the images (jackknife of the mean over the seeds, since a group of noise is left out of all of
    them at once) and the seeds (their variance over their number). Half the interval's width is

        sqrt(t_(G-1)^2 var_images + t_(S-1)^2 var_seeds)

    (Howe, J. Am. Stat. Assoc. 69 (1974)), exact where one source rules; degrees of freedom estimated from the two or three
    seeds of a study are too noisy for it. What a seed and an image do together is in both, so the interval is rather too wide
    than too narrow. One seed: over samples alone.
    """
    if len(seeds) == 1:
        return seeds[0].interval()
    values = np.array([estimate.value for estimate in seeds])
    images = Estimate(float(values.mean()), np.mean([estimate.replicates for estimate in seeds], axis=0))
    half = math.hypot(images.interval().half, over_seeds(values.tolist()).half)
    return Interval(images.value, images.value - half, images.value + half)


def over_seeds(values: Sequence[float]) -> Interval:
    """Mean and t-interval over seeds of numbers that have no samples of their own; two values at least."""
    array = np.array(values)
    return _interval(float(array.mean()), float(array.var(ddof=1)) / len(array), len(array) - 1)


def _interval(value: float, variance: float, freedom: int) -> Interval:
    half = float(student.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return Interval(value, value - half, value + half)


def groups_of(n: int) -> NDArray[np.int64]:
    """The group of each of n samples: in turn, so that all are of one size but for one. At most a group a sample."""
    return np.arange(n) % min(GROUPS, n)


def of_mean(values: NDArray[Any]) -> Estimate:
    """Estimate a mean.

    Args:
        values: One value per image, [n].

    Returns:
        The mean with its jackknife replicates.
    """
    values = values.astype(np.float64)
    groups = groups_of(len(values))
    without = (values.sum() - np.bincount(groups, values)) / (len(values) - np.bincount(groups))
    return Estimate(float(values.mean()), without)
