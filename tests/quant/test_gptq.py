"""GPTQ against its definition: layer errors, a slow version column by column, and every kind of layer."""

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdexp.quant import MinMax, PerChannel, PerTensor, QParams, Scheme, Split, dequantize, qparams_from_range
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.gptq import CHUNK, DAMPING, SAMPLES, InputMoments, gptq
from qdexp.quant.ranges import estimate
from qdexp.quant.scheme import Granularity

LAYERS: dict[str, tuple[Any, tuple[int, ...]]] = {
    "linear": (nn.Linear(6, 5), (4, 3, 6)),
    "conv": (nn.Conv2d(4, 5, 3, stride=2, padding=1), (3, 4, 7, 8)),
    "reflected": (nn.Conv2d(4, 5, 3, padding=1, padding_mode="reflect"), (3, 4, 6, 6)),
    "dilated": (nn.Conv2d(2, 3, (3, 1), dilation=2, padding="same"), (2, 2, 7, 7)),
    "grouped": (nn.Conv2d(4, 6, 3, groups=2), (3, 4, 6, 6)),
    "conv1d": (nn.Conv1d(3, 4, 3, stride=2, padding=2), (2, 3, 9)),
}


def grid(weight: Tensor, bits: int = 3, granularity: Granularity = PerChannel(0)) -> tuple[QParams, Scheme]:  # noqa: B008
    scheme = Scheme(bits, granularity)
    return qparams_from_range(*estimate(weight, scheme, MinMax()), scheme), scheme


def correlated(rows: int, columns: int) -> Tensor:
    return torch.randn(rows, columns // 2) @ torch.randn(columns // 2, columns) + 0.3 * torch.randn(rows, columns)


@pytest.mark.parametrize("name", LAYERS)
def test_moments_tell_the_squared_output_error_of_any_change_of_the_weight(name: str) -> None:
    layer, shape = LAYERS[name]
    x, change = torch.randn(shape), torch.randn_like(layer.weight)
    exact = x + 0.3 * torch.randn(shape)
    moments = InputMoments(layer, len(x), seed=0)
    for part, other in zip(x.split(2), exact.split(2), strict=True):
        moments.observe(part, other)
    rows = change.reshape(len(moments.total), -1, moments.total.shape[-1])
    predicted = (rows @ moments.total * rows).sum() - 2 * (rows * moments.shift).sum()
    with torch.no_grad():
        target = layer(exact)
        before = (layer(x) - target).square().sum()
        layer.weight += change
        assert torch.allclose((layer(x) - target).square().sum() - before, predicted, rtol=1e-4)
        layer.weight -= change


@pytest.mark.parametrize(
    ("layer", "shape"),
    [
        (nn.Conv2d(2, 3, 3, padding=1), (2, 24, 24)),
        (nn.Conv1d(6, 3, 3, padding=1), (6, 576)),
        (nn.Linear(18, 3), (576, 18)),
    ],
)
def test_of_rows_with_many_output_values_some_are_taken(layer: nn.Module, shape: tuple[int, ...]) -> None:
    x = torch.randn(40, *shape)
    few, again, others, whole = (InputMoments(layer, rows, seed) for rows, seed in ((40, 0), (40, 0), (40, 1), (1, 0)))
    for part in x.split(8):
        for moments in (few, again, others, whole):
            moments.observe(part, 1.5 * part)
    share = math.ceil(SAMPLES * 18 / 40)
    ratios = few.total.diagonal(dim1=1, dim2=2) / whole.total.diagonal(dim1=1, dim2=2)
    assert ratios.mean().item() == pytest.approx(share / 576, rel=0.1)
    moved = 0.5 * layer.weight.reshape(3, 18) @ few.total  # type: ignore[operator]
    assert torch.allclose(few.shift, moved, rtol=1e-4, atol=1e-2)
    assert torch.equal(few.total, again.total)
    assert not torch.equal(few.total, others.total)


def test_as_many_rows_are_needed_as_give_the_values_and_some_at_least(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("qdexp.quant.gptq.ROWS", 10)
    wanted = SAMPLES * 6
    for tokens, there, needed in ((1, 1000, wanted), (1, 100, 100), (3, 1000, wanted // 3), (576, 1000, 10), (576, 7, 7)):
        moments = InputMoments(nn.Linear(6, 2), there, seed=0)
        x = torch.randn(4, tokens, 6)
        moments.observe(x, x)
        assert moments.rows == needed
        whole = torch.einsum("rti,rtj->ij", x, x)
        if tokens <= wanted / needed:
            assert torch.allclose(moments.total[0], whole, rtol=1e-4, atol=1e-4), "they are all taken"
        else:
            assert moments.total[0].trace() < whole.trace() / 2


def test_no_output_value_is_taken_twice() -> None:
    moments = InputMoments(nn.Linear(576, 3), rows=128, seed=0)
    moments.observe(torch.eye(576)[None], torch.eye(576)[None])
    taken = moments.total[0].diagonal()
    assert taken.unique().tolist() == [0, 1]
    assert taken.sum() == SAMPLES * 576 / 128


def slow(weight: Tensor, qparams: QParams, scheme: Scheme, moments: Tensor) -> Tensor:
    """One row, one column at a time, in double precision; the inverse is found anew for the columns that are still free
    (optimal brain surgery, what GPTQ's factor stands for)."""
    hessian = moments.double() + torch.eye(len(moments)) * DAMPING * moments.double().diagonal().mean()
    order = moments.diagonal().argsort(descending=True).tolist()
    levels = torch.zeros_like(weight, dtype=torch.long)
    for row in range(len(weight)):
        w, s, z = weight[row].double(), float(qparams.scale[row]), int(qparams.zero_point[row])
        free = list(order)
        while free:
            i = free[0]
            inverse = torch.linalg.inv(hessian[free][:, free])
            level = min(max(round(float(w[i]) / s) + z, scheme.qmin), scheme.qmax)
            levels[row, i] = level
            lost = (w[i] - (level - z) * s) / inverse[0, 0]
            w[free] -= lost * inverse[0]
            free.pop(0)
    return levels


def test_the_levels_of_the_slow_version() -> None:
    weight, x = torch.randn(4, 12), correlated(200, 12)
    qparams, scheme = grid(weight)
    levels = gptq(weight, qparams, scheme, (x.mT @ x)[None], torch.zeros(1, 4, 12))
    assert levels.dtype == scheme.dtype
    assert torch.equal(levels.long(), slow(weight, qparams, scheme, x.mT @ x))
    assert not torch.equal(levels, nearest(weight, qparams, scheme))


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(0), Split((CHUNK, 72), PerChannel(0))])
def test_a_smaller_output_error_than_nearest_rounding(granularity: Granularity) -> None:
    weight, x = torch.randn(16, CHUNK + 72), correlated(500, CHUNK + 72)
    qparams, scheme = grid(weight, 4, granularity)

    def error(levels: Tensor) -> Tensor:
        return (x @ (dequantize(levels, qparams, scheme) - weight).mT).square().sum()

    moments, still = (x.mT @ x)[None], torch.zeros_like(weight)[None]
    assert error(gptq(weight, qparams, scheme, moments, still)) < 0.5 * error(nearest(weight, qparams, scheme))


def test_errors_of_the_inputs_are_made_good() -> None:
    """Inputs that are off give nearly the full-precision outputs, as far as the weight can tell them apart."""
    weight, exact = torch.randn(16, 48), correlated(500, 48)
    x = exact @ (torch.eye(48) + 0.05 * torch.randn(48, 48))
    qparams, scheme = grid(weight, 8)
    moments, shift = (x.mT @ x)[None], (weight @ (exact - x).mT @ x)[None]

    def error(levels: Tensor) -> Tensor:
        return (x @ dequantize(levels, qparams, scheme).mT - exact @ weight.mT).square().sum()

    alone, paired = (gptq(weight, qparams, scheme, moments, factor * shift) for factor in (0, 1))
    assert error(paired) < 0.1 * error(alone)
    inverse = torch.linalg.inv(moments[0].double() + torch.eye(48) * DAMPING * moments[0].double().diagonal().mean())
    moved = (weight.double() + shift[0].double() @ inverse).float()
    assert torch.equal(paired, gptq(moved, qparams, scheme, moments, 0 * shift))


def test_uncorrelated_or_dead_inputs_give_nearest_rounding() -> None:
    weight = torch.randn(5, 4, 3, 3)
    qparams, scheme = grid(weight)
    dead = torch.eye(36)
    dead[7, 7] = 0
    for moments in (torch.eye(36), torch.zeros(36, 36), dead):
        levels = gptq(weight, qparams, scheme, moments[None], torch.zeros(1, 5, 36))
        assert torch.equal(levels, nearest(weight, qparams, scheme))
