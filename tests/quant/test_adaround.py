import math

import pytest
import torch
from torch import Tensor

from qdexp.quant import MinMax, NormSearch, PerChannel, PerTensor, QParams, Scheme, Split, dequantize, qparams_from_range
from qdexp.quant.adaround import LEEWAY, SoftRounding, undecided
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.ranges import estimate
from qdexp.quant.scheme import Granularity

GRANULARITIES: list[Granularity] = [PerTensor(), PerChannel(), Split((2, 4), PerChannel()), Split((1, 5))]


def rounding_of(
    weight: Tensor, bits: int = 4, symmetric: bool = False, granularity: Granularity = GRANULARITIES[1], shrink: float = 1.0
) -> tuple[SoftRounding, QParams]:
    """The start on the min-max grid of the weight times `shrink`."""
    scheme = Scheme(bits, granularity, symmetric)
    qparams = qparams_from_range(*estimate(weight * shrink, scheme, MinMax()), scheme)
    return SoftRounding(weight, qparams, scheme), qparams


def scales(qparams: QParams, rounding: SoftRounding) -> Tensor:
    """The scale of every weight."""
    granularity, weight = rounding.scheme.granularity, rounding.alpha
    return granularity.expand(qparams.scale, weight.shape).expand_as(weight)


def slow(w: float, alpha: float, scale: float, zero_point: int, qmin: float, qmax: float) -> tuple[float, float, float]:
    """h, the soft weight and the hard integer, in double precision."""
    h = min(max(1.2 / (1 + math.exp(-alpha)) - 0.1, 0), 1)
    low = math.floor(w / scale) + zero_point
    soft = (min(max(low + h, qmin), qmax) - zero_point) * scale
    return h, soft, min(max(low + (alpha >= 0), qmin), qmax)


@pytest.mark.parametrize("bits", [2, 3, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_it_starts_at_the_weight_itself_and_would_end_at_the_nearest_level(
    bits: int, symmetric: bool, granularity: Granularity
) -> None:
    weight = torch.randn(5, 6, 3, 3)
    rounding, qparams = rounding_of(weight, bits, symmetric, granularity)
    h = rounding.h()
    assert h.shape == rounding.alpha.shape == weight.shape
    assert ((h >= 0) & (h <= 1)).all()
    scheme, scale = rounding.scheme, scales(qparams, rounding)
    zero_point = granularity.expand(qparams.zero_point, weight.shape)
    held = weight.clamp((scheme.qmin - zero_point) * scale, (scheme.qmax - zero_point) * scale)
    assert (held - weight).abs().max() <= 0.51 * scale.max()  # the zero point is rounded
    assert torch.allclose(rounding.weight(h), held, atol=1e-5 * float(scale.max()))
    assert torch.equal(rounding.integers(), nearest(weight, qparams, rounding.scheme))
    assert rounding.integers().dtype == rounding.scheme.dtype


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shrink", [1.0, 0.4])
def test_it_starts_near_levels_found_otherwise_and_may_go_one_further_towards_the_weight(
    granularity: Granularity, shrink: float
) -> None:
    weight = torch.randn(5, 6, 3)
    plain, qparams = rounding_of(weight, 3, granularity=granularity, shrink=shrink)
    scheme, scale = plain.scheme, scales(qparams, plain)
    levels = torch.randint(0, 8, weight.shape, dtype=scheme.dtype)
    rounding = SoftRounding(weight, qparams, scheme, levels)
    assert torch.equal(rounding.integers(), levels)
    exact = weight / scale + granularity.expand(qparams.zero_point, weight.shape)
    towards = torch.where(exact < levels, -1, 1)
    soft = rounding.weight(rounding.h())
    expected = (levels + towards * (exact - levels).abs().clamp_max(LEEWAY)).clamp(0, 7)
    assert torch.allclose(
        soft, (expected - granularity.expand(qparams.zero_point, weight.shape)) * scale, atol=1e-5 * float(scale.max())
    )
    rounding.alpha.data.neg_()
    other = rounding.integers().float()
    assert torch.equal(other, (levels + towards).clamp(0, 7).float())


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("shrink", [1.0, 0.4])
def test_equals_loops_over_elements(symmetric: bool, shrink: float) -> None:
    weight = torch.randn(3, 6)
    rounding, qparams = rounding_of(weight, 3, symmetric, shrink=shrink)
    rounding.alpha.data += 2 * torch.randn(3, 6)
    scheme, h, integers = rounding.scheme, rounding.h(), rounding.integers()
    soft = rounding.weight(h)
    for row in range(3):
        grid = qparams.scale[row].item(), int(qparams.zero_point[row]), scheme.qmin, scheme.qmax
        for column in range(6):
            expected = slow(weight[row, column].item(), rounding.alpha[row, column].item(), *grid)
            assert h[row, column].item() == pytest.approx(expected[0], abs=1e-6)
            assert soft[row, column].item() == pytest.approx(expected[1], abs=1e-5)
            assert int(integers[row, column]) == expected[2]


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("shrink", [1.0, 0.4])
def test_the_hard_choice_is_one_of_two_neighbours_on_the_grid(granularity: Granularity, shrink: float) -> None:
    weight = torch.randn(4, 6, 2)
    rounding, qparams = rounding_of(weight, 3, granularity=granularity, shrink=shrink)
    scheme = rounding.scheme
    low = ((weight / scales(qparams, rounding)).floor() + granularity.expand(qparams.zero_point, weight.shape)).clamp(0, 7)
    for alpha in (-9.0, 9.0, torch.randn(4, 6, 2)):
        rounding.alpha.data = torch.zeros_like(weight) + alpha
        integers = rounding.integers()
        assert integers.min() >= scheme.qmin
        assert integers.max() <= scheme.qmax
        up = integers.float() - low
        assert ((up == 0) | (up == 1)).all()
        assert up[(rounding.alpha < 0)].eq(0).all()
        assert up[(rounding.alpha >= 0) & (low < 7) & (low > 0)].eq(1).all()
        hard = rounding.weight((rounding.alpha >= 0).float())
        assert torch.equal(hard, dequantize(integers, qparams, scheme))


def test_weights_on_the_grid_stay_there() -> None:
    scheme = Scheme(4, PerChannel())
    qparams = QParams(torch.tensor([0.25, 0.5]), torch.tensor([7, 3], dtype=torch.int32))
    integers = torch.arange(16, dtype=torch.uint8).repeat(2, 1)
    weight = dequantize(integers, qparams, scheme)
    rounding = SoftRounding(weight, qparams, scheme)
    assert rounding.h().abs().max() < 1e-6
    assert torch.allclose(rounding.weight(rounding.h()), weight, atol=1e-6)
    assert torch.equal(rounding.integers(), integers)


def test_what_is_undecided_becomes_the_upper_level() -> None:
    scheme = Scheme(4, PerTensor(), symmetric=True)
    rounding = SoftRounding(torch.tensor([[0.5, -1.5]]), QParams(torch.ones(1), torch.zeros(1, dtype=torch.int32)), scheme)
    assert rounding.alpha.eq(0).all()
    assert rounding.integers().tolist() == [[1, -1]]


@pytest.mark.parametrize("symmetric", [False, True])
def test_weights_beyond_the_grid_are_its_ends_and_cannot_leave_them(symmetric: bool) -> None:
    weight = torch.tensor([[-9.0, -2.0, 0.3, 2.0, 9.0]])
    scheme = Scheme(4, PerTensor(), symmetric)
    rounding = SoftRounding(weight, qparams_from_range(torch.tensor([-1.0]), torch.tensor([1.0]), scheme), scheme)
    rounding.weight(rounding.h()).sum().backward()
    assert rounding.alpha.grad is not None
    assert (rounding.alpha.grad[0] != 0).tolist() == [False, False, True, False, False]
    for alpha in (-3.0, 0.0, 3.0):
        rounding.alpha.data.fill_(alpha)
        ends = rounding.integers()[0, [0, 1, 3, 4]].tolist()
        assert ends == [scheme.qmin] * 2 + [scheme.qmax] * 2


@pytest.mark.parametrize("estimator", [MinMax(), NormSearch()])
def test_an_all_zero_channel_stays_zero(estimator: MinMax | NormSearch) -> None:
    weight, scheme = torch.randn(3, 6), Scheme(4, PerChannel())
    weight[1] = 0
    qparams = qparams_from_range(*estimate(weight, scheme, estimator), scheme)
    for levels in (None, nearest(weight, qparams, scheme)):
        rounding = SoftRounding(weight, qparams, scheme, levels)
        assert rounding.alpha.isfinite().all()
        assert rounding.weight(rounding.h())[1].abs().max() < 1e-6
        assert rounding.weight((rounding.alpha >= 0).float())[1].eq(0).all()


def test_strides_of_the_weight_are_kept() -> None:
    weight = torch.randn(4, 6, 3, 3).to(memory_format=torch.channels_last)
    plain, qparams = rounding_of(weight, granularity=Split((2, 4), PerChannel()))
    for rounding in (plain, SoftRounding(weight, qparams, plain.scheme, plain.integers())):
        for tensor in (rounding.alpha, rounding.weight(rounding.h()), rounding.integers()):
            assert tensor.stride() == weight.stride()


@pytest.mark.parametrize("beta", [20.0, 7.3, 2.0])
def test_the_regulariser(beta: float) -> None:
    h = torch.tensor([0.0, 0.1, 0.25, 0.5, 0.8, 1.0], requires_grad=True)
    value = undecided(h, beta)
    expected = [1 - abs(2 * x - 1) ** beta for x in (0, 0.1, 0.25, 0.5, 0.8, 1)]
    assert value.tolist() == pytest.approx(expected, abs=1e-6)
    value.sum().backward()
    assert h.grad is not None
    assert h.grad.isfinite().all()
    assert (h.grad[1:3] > 0).all(), "below one half it drives h down"
    assert h.grad[4] < 0


def test_learning_alpha_finds_a_better_rounding_than_the_nearest() -> None:
    """What it is for: with correlated inputs the errors of several weights can make up for one another."""
    weight, x = torch.randn(4, 6), torch.randn(64, 6) + 3
    rounding, qparams = rounding_of(weight, 3)
    optimizer = torch.optim.Adam(rounding.parameters(), lr=0.05)

    def loss(w: Tensor) -> Tensor:
        return (x @ (w - weight).T).square().mean()

    for step in range(200):
        h = rounding.h()
        regulariser = undecided(h, 20 - 18 * step / 200).mean()
        optimizer.zero_grad()
        (loss(rounding.weight(h)) / 10 + (step > 40) * regulariser).backward()
        optimizer.step()
    h = rounding.h()
    assert ((h < 0.01) | (h > 0.99)).float().mean() > 0.9
    learned, before = (
        loss(dequantize(integers, qparams, rounding.scheme))
        for integers in (rounding.integers(), nearest(weight, qparams, rounding.scheme))
    )
    assert learned < 0.5 * before
