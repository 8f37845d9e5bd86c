from collections.abc import Callable

import pytest
import torch
from quant_helpers import slow_fake_quantize, slow_grid

from qdexp.quant import PerChannel, PerTensor, QParams, Scheme, Split, dequantize, fake_quantize, qparams_from_range, quantize
from qdexp.quant.affine import fake_quantize_learned, fused
from qdexp.quant.scheme import Granularity

SIGNS = {"both": lambda x: x, "positive": lambda x: x.abs() + 1, "negative": lambda x: -x.abs() - 1}


def qparams_of(x: torch.Tensor, scheme: Scheme) -> QParams:
    rows = groups_of(x, scheme.granularity)
    return qparams_from_range(torch.stack([row.min() for row in rows]), torch.stack([row.max() for row in rows]), scheme)


def groups_of(x: torch.Tensor, granularity: Granularity) -> list[torch.Tensor]:
    return [row for piece in granularity.pieces(x) for row in piece]


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerChannel(1), Split((3, 1)), Split((1, 3), PerChannel())])
@pytest.mark.parametrize("sign", SIGNS)
def test_equals_loops_over_elements(bits: int, symmetric: bool, granularity: Granularity, sign: str) -> None:
    torch.manual_seed(bits)
    x = SIGNS[sign](torch.randn(3, 4, 5))
    scheme = Scheme(bits, granularity, symmetric)
    qparams = qparams_of(x, scheme)
    rows, hat = groups_of(x, granularity), groups_of(fake_quantize(x, qparams, scheme), granularity)
    for group, row in enumerate(rows):
        scale, zero_point = slow_grid(row.min().item(), row.max().item(), bits, symmetric)
        assert qparams.scale[group].item() == pytest.approx(scale, rel=1e-6)
        assert abs(qparams.zero_point[group].item() - zero_point) <= 1  # ties may round either way in single precision
        grid = qparams.scale[group].item(), int(qparams.zero_point[group])
        expected = [slow_fake_quantize(v, *grid, scheme.qmin, scheme.qmax) for v in row.tolist()]
        close = torch.isclose(hat[group].double(), torch.tensor(expected).double(), atol=1e-6)
        assert close.float().mean() > 0.9  # the others lie on a tie
        assert (hat[group] - row).abs().max() <= scale * 1.01  # rounding of x plus that of z


@pytest.mark.parametrize("bits", range(2, 9))
@pytest.mark.parametrize("symmetric", [False, True])
def test_integers_and_fake_quantization_agree_exactly(bits: int, symmetric: bool) -> None:
    x = torch.randn(6, 50) * 3
    scheme = Scheme(bits, PerChannel(), symmetric)
    qparams = qparams_of(x / 2, scheme)  # so that some values are clipped
    integers = quantize(x, qparams, scheme)
    assert integers.dtype == scheme.dtype
    assert integers.min() >= scheme.qmin
    assert integers.max() == scheme.qmax
    hat = dequantize(integers, qparams, scheme)
    assert torch.equal(hat, fake_quantize(x, qparams, scheme))
    assert torch.equal(quantize(hat, qparams, scheme), integers)


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
@pytest.mark.parametrize("symmetric", [False, True])
def test_agrees_with_the_fused_operator_of_torch_bit_for_bit(bits: int, symmetric: bool) -> None:
    x = torch.randn(100_000) * 4
    scheme = Scheme(bits, symmetric=symmetric)
    qparams = qparams_from_range(torch.tensor([-2.7]), torch.tensor([5.1]), scheme)
    assert torch.equal(fake_quantize(x, qparams, scheme), fused(x, qparams, scheme))


@pytest.mark.parametrize("quantizer", [fake_quantize, fused, fake_quantize_learned])
def test_nan_is_never_turned_into_a_number(quantizer: Callable[[torch.Tensor, QParams, Scheme], torch.Tensor]) -> None:
    """Else a broken network would be sampled to the end, and measured."""
    x, scheme = torch.tensor([0.5, torch.nan, torch.inf, -torch.inf]), Scheme(8)
    found = quantizer(x, qparams_from_range(torch.tensor([-1.0]), torch.tensor([1.0]), scheme), scheme)
    assert found.isnan().tolist() == [False, True, False, False]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("value", [0.0, 1e-42])
def test_a_dead_channel_stays_dead(symmetric: bool, value: float) -> None:
    scheme = Scheme(4, PerChannel(), symmetric)
    x = torch.stack([torch.full((5,), value), torch.randn(5)])
    qparams = qparams_of(x, scheme)
    assert (qparams.scale > 0).all()
    assert qparams.scale.isfinite().all()
    hat = fake_quantize(x, qparams, scheme)
    assert torch.equal(hat[0], torch.zeros(5))
    assert hat[1].any()


@pytest.mark.parametrize("sign", SIGNS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_zero_and_both_ends_are_reproduced(sign: str, symmetric: bool) -> None:
    scheme = Scheme(8, symmetric=symmetric)
    x = SIGNS[sign](torch.randn(1, 100))
    qparams = qparams_of(x, scheme)
    assert fake_quantize(torch.zeros(3), qparams, scheme).eq(0).all()
    ends = torch.stack(x.aminmax())
    assert (fake_quantize(ends, qparams, scheme) - ends).abs().max() <= qparams.scale.item() * 0.51


def test_half_precision_and_strides_are_kept() -> None:
    x = torch.randn(2, 8, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last)
    for scheme in (Scheme(8), Scheme(4, PerChannel(1)), Scheme(8, Split((2, 6)))):
        qparams = qparams_of(x, scheme)
        assert qparams.scale.dtype == torch.float32
        hat = fake_quantize(x, qparams, scheme)
        assert hat.dtype == x.dtype
        assert hat.stride() == x.stride()
        assert quantize(x, qparams, scheme).stride() == x.stride()


def straight_through(x: torch.Tensor, scale: torch.Tensor, zero_point: torch.Tensor, scheme: Scheme) -> torch.Tensor:
    """Slow and obvious: for its gradient rounding is the identity, and the ends of the grid are constants."""
    level = x / scale
    held = level.round().clamp(scheme.qmin - zero_point, scheme.qmax - zero_point)
    rounded = level + (held - level).detach()
    return torch.where(held == level.round(), rounded, held.detach()) * scale


@pytest.mark.parametrize("bits", [2, 4, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(1), Split((3, 1)), Split((1, 3), PerChannel())])
def test_learned_scales_have_straight_through_gradients(bits: int, symmetric: bool, granularity: Granularity) -> None:
    x, scheme = torch.randn(6, 4, 5), Scheme(bits, granularity, symmetric)
    qparams = qparams_of(x * 0.6, scheme)  # so that some values are clipped
    received = torch.randn(6, 4, 5)
    x.requires_grad_()
    scale = qparams.scale.requires_grad_()
    hat = fake_quantize_learned(x, qparams, scheme)
    assert torch.equal(hat, fake_quantize(x, qparams, scheme))
    got = torch.autograd.grad(hat, [x, scale], received)

    exact = [value.detach().double().requires_grad_() for value in (x, scale)]
    expand = granularity.expand
    slow = straight_through(exact[0], expand(exact[1], x.shape), expand(qparams.zero_point, x.shape), scheme)
    by_x, by_scale = torch.autograd.grad(slow, exact, received.double())
    torch.testing.assert_close(got[0].double(), by_x, rtol=1e-6, atol=0)
    assert 0.2 < got[0].eq(received).float().mean() < 1, "values beyond the grid have no gradient"
    assert got[1].shape == scale.shape
    torch.testing.assert_close(got[1].double(), by_scale, rtol=1e-4, atol=1e-4)

    kept: list[tuple[int, int]] = []

    def keep(one: torch.Tensor) -> torch.Tensor:
        kept.append((one.numel(), one.element_size()))
        return one

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda one: one):
        fixed = fake_quantize_learned(x, QParams(scale.detach(), qparams.zero_point), scheme)
    assert torch.equal(fixed, hat)
    assert torch.equal(torch.autograd.grad(fixed, x, received)[0], got[0])
    assert kept == [(x.numel(), 1)]


def test_a_learned_scale_finds_its_best_value() -> None:
    x, scheme = torch.randn(2000), Scheme(4)
    zero_point = torch.tensor([8], dtype=torch.int32)
    candidates = torch.linspace(0.1, 1, 200)
    errors = torch.stack([(fake_quantize(x, QParams(s[None], zero_point), scheme) - x).square().mean() for s in candidates])
    log = candidates[-1:].log().requires_grad_()
    optimizer = torch.optim.Adam([log], lr=0.05)
    for _ in range(150):
        optimizer.zero_grad()
        (fake_quantize_learned(x, QParams(log.exp(), zero_point), scheme) - x).square().mean().backward()
        optimizer.step()
    error = (fake_quantize(x, QParams(log.detach().exp(), zero_point), scheme) - x).square().mean()
    assert error < 1.05 * errors.min() < 0.5 * errors[-1]


def test_learned_scales_keep_half_precision_and_strides() -> None:
    x = torch.randn(2, 8, 4, 4).to(torch.bfloat16, memory_format=torch.channels_last).requires_grad_()
    for scheme in (Scheme(8), Scheme(8, Split((2, 6)))):
        qparams = qparams_of(x.detach(), scheme)
        hat = fake_quantize_learned(x, QParams(qparams.scale.requires_grad_(), qparams.zero_point), scheme)
        assert hat.dtype == x.dtype
        assert hat.stride() == x.stride()
        assert torch.equal(hat, fake_quantize(x, qparams, scheme))
        by_x, by_scale = torch.autograd.grad(hat.sum(), [x, qparams.scale])
        assert (by_x.dtype, by_scale.dtype) == (x.dtype, torch.float32)


def test_the_integers_are_those_of_the_nearest_levels() -> None:
    scheme = Scheme(3, PerChannel())
    weight = torch.randn(4, 5, 3, 3)
    qparams = qparams_from_range(*scheme.granularity.pieces(weight)[0].aminmax(dim=1), scheme)
    chosen = (dequantize(quantize(weight, qparams, scheme), qparams, scheme) - weight).abs()
    for level in range(int(scheme.qmin), int(scheme.qmax) + 1):
        other = (dequantize(torch.full(weight.shape, level), qparams, scheme) - weight).abs()
        assert (chosen <= other + 1e-6).all()
