from dataclasses import dataclass

import pytest
import torch
from quant_helpers import slow_norm_search
from torch import Tensor

from qdexp.quant import (
    MinMax,
    NormSearch,
    PerChannel,
    PerTensor,
    RangeEstimator,
    RangeStream,
    Scheme,
    Split,
    qparams_from_range,
)
from qdexp.quant.percentile import Percentile
from qdexp.quant.ranges import Observer, estimate, norm_errors

ESTIMATORS = [MinMax(), NormSearch(), NormSearch(p=2.0, candidates=(1.0, 0.8, 0.5)), Percentile(q=90)]


def weights(sign: str, groups: int = 4, n: int = 60) -> Tensor:
    torch.manual_seed(0)
    x = torch.randn(groups, n) ** 3
    return {"both": x, "positive": x.abs() + 0.5, "negative": -x.abs()}[sign]


def streamed(estimator: RangeEstimator, scheme: Scheme, parts: list[Tensor]) -> tuple[Tensor, Tensor]:
    stream = estimator.start(scheme, len(parts[0]))
    for _ in range(stream.passes):
        for part in parts:
            stream.observe(part)
        stream.end_pass()
    return stream.range()


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_norm_search_equals_a_loop_over_channels_candidates_and_elements(bits: int, symmetric: bool, sign: str) -> None:
    x, scheme = weights(sign), Scheme(bits, PerChannel(), symmetric)
    lo, hi = estimate(x, scheme, NormSearch(p=2.4))
    for group, row in enumerate(x):
        errors, magnitude = slow_norm_search(row, scheme, 2.4)
        chosen = round(100 * max(-lo[group].item(), hi[group].item()) / magnitude)
        assert errors[100 - chosen] == pytest.approx(min(errors), rel=1e-4)


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("p", [2.0, 2.4])
def test_error_sums_equal_the_loop(symmetric: bool, p: float) -> None:
    x, scheme = weights("both"), Scheme(3, PerChannel(), symmetric)
    shrink = torch.arange(100, 20, -1) / 100
    lo, hi = x.aminmax(dim=1)
    if symmetric:
        lo, hi = -x.abs().amax(1), x.abs().amax(1)
    sums = norm_errors(x, torch.outer(lo, shrink), torch.outer(hi, shrink), scheme, p)
    for group, row in enumerate(x):
        expected = torch.tensor(slow_norm_search(row, scheme, p)[0], dtype=torch.float64)
        assert torch.isclose(sums[group], expected, rtol=1e-3).float().mean() > 0.97  # a tie rounds differently in double


def test_of_ranges_that_lose_as_much_the_widest_is_taken() -> None:
    scheme, x = Scheme(2, PerChannel()), torch.tensor([[0.0, 1.0]])
    _, hi = estimate(x, scheme, NormSearch(candidates=(3.0, 1.5)))  # levels 1 and 1/2 apart: nothing is lost by either
    assert hi.tolist() == [3]


def test_symmetric_schemes_search_symmetric_ranges() -> None:
    lo, hi = estimate(weights("positive"), Scheme(4, PerChannel(), symmetric=True), NormSearch())
    assert torch.equal(lo, -hi)
    assert (hi > 0).all()


@pytest.mark.parametrize("sign", ["both", "positive", "negative"])
def test_the_search_is_never_worse_than_min_max(sign: str) -> None:
    x = weights(sign)
    for symmetric in (False, True):
        scheme = Scheme(4, PerChannel(), symmetric)
        errors = [
            norm_errors(x, lo[:, None], hi[:, None], scheme, 2.4)
            for lo, hi in (estimate(x, scheme, estimator) for estimator in (NormSearch(), MinMax()))
        ]
        assert (errors[0] <= errors[1]).all()
        assert errors[0].sum() < errors[1].sum()


@pytest.mark.parametrize("elements", [1, 7, 60, 61, 500, 5000])
def test_chunks_change_nothing(elements: int) -> None:
    x, scheme = weights("both"), Scheme(4, PerChannel())
    hi = torch.outer(x.abs().amax(1), torch.linspace(1, 0.2, 9))
    whole = norm_errors(x, -hi, hi, scheme, 2.4, elements=10**9)
    torch.testing.assert_close(norm_errors(x, -hi, hi, scheme, 2.4, elements), whole, rtol=1e-6, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_many_parts_equal_one(estimator: RangeEstimator, symmetric: bool) -> None:
    x, scheme = weights("both"), Scheme(4, PerChannel(), symmetric)
    parts = streamed(estimator, scheme, list(x.split([1, 20, 39], dim=1)))
    for ends, whole in zip(parts, estimate(x, scheme, estimator), strict=True):
        torch.testing.assert_close(ends, whole, rtol=0, atol=0)


@pytest.mark.parametrize("estimator", ESTIMATORS)
@pytest.mark.parametrize("within", [PerTensor(), PerChannel()])
def test_the_parts_of_a_split_have_the_ranges_that_they_have_alone(
    estimator: RangeEstimator, within: PerTensor | PerChannel
) -> None:
    x, sizes = weights("both"), (1, 20, 39)
    alone = [estimate(part, Scheme(4, within), estimator) for part in x.split(sizes, dim=1)]
    scheme = Scheme(4, Split(sizes, within))
    observer = Observer(estimator, scheme, scheme.granularity.groups(x.shape))
    for _ in range(observer.passes):
        observer.observe(x)
        observer.end_pass()
    expected = [torch.cat(ends) for ends in zip(*alone, strict=True)]
    for ends, streamed_ends, end in zip(estimate(x, scheme, estimator), observer.range(), expected, strict=True):
        assert torch.equal(ends, end)
        assert torch.equal(streamed_ends, end)


@pytest.mark.parametrize("estimator", ESTIMATORS)
def test_dead_channels_give_a_usable_grid(estimator: RangeEstimator) -> None:
    x, scheme = weights("both"), Scheme(4, PerChannel())
    x[1] = 0
    qparams = qparams_from_range(*estimate(x, scheme, estimator), scheme)
    assert qparams.scale.isfinite().all()
    assert (qparams.scale > 0).all()
    assert qparams.zero_point[1] == 0


def test_min_max() -> None:
    x = weights("both")
    lo, hi = estimate(x, Scheme(4, PerChannel()), MinMax())
    assert lo.tolist() == [min(row) for row in x.tolist()]
    assert hi.tolist() == [max(row) for row in x.tolist()]


@dataclass(frozen=True)
class Deviations(RangeEstimator):
    """The estimator that the module's docstring speaks of, of one part alone."""

    k: float = 4.0

    def start(self, scheme: Scheme, groups: int) -> RangeStream:
        return DeviationsStream(self.k)


class DeviationsStream(RangeStream):
    def __init__(self, k: float) -> None:
        self.k = k

    def observe(self, x: Tensor) -> None:
        self.mean, self.deviation = x.mean(1), x.std(1)

    def range(self) -> tuple[Tensor, Tensor]:
        return self.mean - self.k * self.deviation, self.mean + self.k * self.deviation


def test_an_estimator_of_ones_own() -> None:
    x = weights("both", n=1000)
    lo, hi = estimate(x, Scheme(8, PerChannel()), Deviations(k=1))
    assert lo.shape == hi.shape == (4,)
    inside = ((x >= lo[:, None]) & (x <= hi[:, None])).float().mean()
    assert 0.8 < inside < 0.95
