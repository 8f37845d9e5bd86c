"""Estimates and their intervals, against direct computation and torch-fidelity."""

import math

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from qdexp.metrics.fid import fid
from qdexp.metrics.reference import Reference, statistics
from qdexp.statistics.estimate import GROUPS, Estimate, Interval, groups_of, of_mean, over_seeds, pool
from qdexp.statistics.frechet import Frechet
from qdexp.statistics.kernel import Kernel

Rows = NDArray[np.float64]


def rows(n: int, d: int, seed: int, shift: float = 0.0) -> Rows:
    """Correlated features [n, d], far from zero."""
    random = np.random.default_rng(seed)
    return random.standard_normal((n, d)) @ random.standard_normal((d, d)) + 30 + shift


def torch_fidelity(x: Rows, real: Rows) -> float:
    reference = Reference(**statistics(torch.from_numpy(real)), features=None, floor_features=None, extractor="",
                          extractor_digest="", dataset="", digest="", images="")  # fmt: skip
    return fid(torch.from_numpy(x), reference)


@pytest.mark.parametrize(("n", "d"), [(200, 6), (40, 6), (20, 30)])
def test_fid_is_that_of_torch_fidelity_with_and_without_each_group(n: int, d: int) -> None:
    x, real = rows(n, d, 0), rows(300, d, 1, shift=0.5)
    estimate = Frechet(real.mean(0), np.cov(real.T)).fid(x)
    groups = groups_of(n)
    assert len(estimate.replicates) == min(n, GROUPS)
    assert estimate.value == pytest.approx(torch_fidelity(x, real), rel=1e-6)
    for group in (0, int(groups.max())):
        assert estimate.replicates[group] == pytest.approx(torch_fidelity(x[groups != group], real), rel=1e-6)


def mmd(x: Rows, y: Rows) -> float:
    """The unbiased estimate, pair by pair."""

    def k(a: Rows, b: Rows) -> Rows:
        return np.array([[(p @ q / len(p) + 1) ** 3 for q in b] for p in a])

    n, m = len(x), len(y)
    within = [(k(z, z).sum() - np.trace(k(z, z))) / (len(z) * (len(z) - 1)) for z in (x, y)]
    return float(sum(within) - 2 * k(x, y).sum() / (n * m))


def test_kid_is_the_formula_with_and_without_each_group() -> None:
    x, y = rows(50, 4, 0) / 30, rows(40, 4, 1) / 30
    estimate = Kernel(y).kid(x)
    assert estimate.value == pytest.approx(mmd(x, y), rel=1e-9)
    for group in (0, 31):
        assert estimate.replicates[group] == pytest.approx(mmd(x[groups_of(50) != group], y), rel=1e-9)


def test_a_group_a_sample_gives_the_variance_of_a_mean() -> None:
    values = np.random.default_rng(0).standard_normal(GROUPS)
    assert of_mean(values).variance == pytest.approx(values.var(ddof=1) / GROUPS)
    half = 2.0395134 * math.sqrt(values.var(ddof=1) / GROUPS)  # t of 31 degrees of freedom
    assert of_mean(values).interval().half == pytest.approx(half, rel=1e-6)


def test_what_two_cells_have_in_common_cancels() -> None:
    random = np.random.default_rng(0)
    common, own = random.standard_normal(960), 0.01 * random.standard_normal(960)
    one, other = of_mean(common), of_mean(common + own + 1)
    assert (other - one).interval().half < 0.02 * one.interval().half
    assert (other - one).interval().low > 0
    assert (one - one).interval() == Interval(0, 0, 0)


def test_estimates_of_different_samples_have_no_difference() -> None:
    with pytest.raises(ValueError, match="not the same samples"):
        _ = of_mean(np.arange(10.0)) - of_mean(np.arange(64.0))


def test_seeds_widen_an_interval_by_their_own_spread_only() -> None:
    values = np.random.default_rng(0).standard_normal(320)
    alike = pool([of_mean(values)] * 3)
    assert (alike.value, alike.half) == pytest.approx((values.mean(), of_mean(values).interval().half))
    apart = pool([of_mean(values + shift) for shift in (-5.0, 0.0, 5.0)])
    assert apart.half == pytest.approx(math.hypot(alike.half, 4.3026527 * 5 / math.sqrt(3)), rel=1e-6)
    assert over_seeds([-5.0, 0.0, 5.0]).half == pytest.approx(4.3026527 * 5 / math.sqrt(3), rel=1e-6)


def test_intervals_hold_the_truth_as_often_as_they_say() -> None:
    """A mean of three seeds whose spread is as large as that of the samples; `analysis/coverage.py` does it on images."""
    random, held = np.random.default_rng(0), []
    for _ in range(600):
        images, offsets = random.standard_normal(256), random.standard_normal(3) / 16
        interval = pool([of_mean(images + offset + random.standard_normal(256) / 4) for offset in offsets])
        held.append(interval.low <= 0 <= interval.high)
    assert 0.93 <= np.mean(held) <= 0.995


def test_an_estimate_is_a_value() -> None:
    apart = Estimate(3.0, np.array([1.0, 2.0])) - Estimate(1.0, np.array([1.0, 1.0]))
    assert apart.value == 2.0
    assert apart.replicates.tolist() == [0.0, 1.0]


def test_the_bias_of_an_estimate_is_no_variance() -> None:
    """Replicates spread about their own mean: those of FID lie above it, the more the fewer images there are."""
    assert Estimate(3.0, np.array([4.0, 5.0])).variance == Estimate(4.5, np.array([4.0, 5.0])).variance == 0.25
