"""Percentiles against sorting: the same order statistics, bit for bit."""

import math
from collections.abc import Sequence
from fractions import Fraction

import pytest
import torch
from torch import Tensor

from qdexp.quant import MinMax, PerChannel, PerTensor, Scheme, qparams_from_range
from qdexp.quant.percentile import Percentile, PercentileStream
from qdexp.quant.ranges import estimate

SIZES = [1, 2, 7, 1000, 12345]
FEW, MANY = PercentileStream.MANY - 1, PercentileStream.MANY


def values(groups: int, n: int) -> Tensor:
    """Of every magnitude: zeros of both signs, subnormals, one outlier of 1e30, equal values."""
    torch.manual_seed(0)
    x = torch.randn(groups, n) ** 3 * 10.0 ** torch.randint(-3, 3, (groups, n))
    for place, value in enumerate((0.0, -0.0, 1e-42, -1e-42, 1e30, 0.25, 0.25)[: n - 1]):
        x[:, place] = value
    return x


def shown(estimator: Percentile, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    stream = estimator.start(Scheme(4), len(parts[0]))
    for _ in range(stream.passes):
        for part in parts:
            stream.observe(part)
        stream.end_pass()
    return stream.range()


@pytest.mark.parametrize("groups", [1, FEW, MANY])
@pytest.mark.parametrize("n", SIZES)
@pytest.mark.parametrize("q", [100, 99.9, 99, 75, 50.1])
def test_both_ends_are_the_order_statistics_of_nearest_rank(groups: int, n: int, q: float) -> None:
    x = values(groups, n)
    kept = math.ceil(Fraction(str(q)) / 100 * n)  # 99.9 % of 1,000 are 999, in floating point not quite
    lo, hi = shown(Percentile(q), x.split(max(1, n // 3), dim=1))
    ordered = x.sort(dim=1).values
    assert torch.equal(hi, ordered[:, kept - 1])
    assert torch.equal(lo, ordered[:, n - kept])


def test_they_hold_what_they_say_and_leave_out_the_rest() -> None:
    x = values(3, 10_000)
    lo, hi = shown(Percentile(99), [x])
    assert ((x <= hi[:, None]).float().mean(1) >= 0.99).all() and ((x < hi[:, None]).float().mean(1) < 0.99).all()
    assert ((x >= lo[:, None]).float().mean(1) >= 0.99).all() and ((x > lo[:, None]).float().mean(1) < 0.99).all()


def test_all_of_the_values_is_min_max() -> None:
    x = values(40, 300)
    ends = [estimate(x, Scheme(4, PerChannel()), estimator) for estimator in (Percentile(100), MinMax())]
    assert all(torch.equal(found, expected) for found, expected in zip(*ends, strict=True))


def test_one_outlier_is_left_out() -> None:
    x = torch.cat([torch.linspace(-1, 1, 5000), torch.tensor([1e30])]).view(1, -1)
    assert qparams_from_range(*estimate(x, Scheme(8), Percentile()), Scheme(8)).scale < 2.01 / 255


def test_halves_are_found_among_halves() -> None:
    x = torch.randn(2, 500).to(torch.bfloat16)
    lo, hi = estimate(x, Scheme(8, PerChannel()), Percentile(90))
    assert torch.equal(torch.stack([lo, hi]).to(torch.bfloat16).float(), torch.stack([lo, hi]))


def test_a_nan_is_no_value_to_leave_out() -> None:
    x = values(2, 1000)
    x[1, 3] = math.nan
    lo, hi = estimate(x, Scheme(8, PerChannel()), Percentile(90))
    assert lo.isnan().tolist() == hi.isnan().tolist() == [False, True]


def test_memory_does_not_grow_with_the_number_of_values() -> None:
    stream = PercentileStream(Fraction(9, 10), groups=2)
    for _ in range(3):
        stream.observe(torch.randn(2, 50_000))
    held = [value for value in vars(stream).values() if isinstance(value, Tensor)]
    assert sum(value.numel() for value in held) < 2 * 2**16 + 100


def test_passes_beyond_its_own_change_nothing() -> None:
    x = values(1, 500)
    stream = Percentile(90).start(Scheme(8, PerTensor()), 1)
    for _ in range(stream.passes):
        stream.observe(x)
        stream.end_pass()
    before = stream.range()
    stream.observe(x + 1)
    stream.end_pass()
    assert all(torch.equal(one, other) for one, other in zip(before, stream.range(), strict=True))


def test_no_range_before_all_passes() -> None:
    stream = Percentile().start(Scheme(8), 1)
    stream.observe(torch.randn(1, 10))
    stream.end_pass()
    with pytest.raises(ValueError, match="passes"):
        stream.range()


@pytest.mark.parametrize("q", [50, 100.1, -1, math.nan])
def test_tails_that_leave_no_range_are_refused(q: float) -> None:
    with pytest.raises(ValueError, match="q="):
        Percentile(q)
