"""Smoothing against the formulas of the papers, and its search against the error that it is meant to lower."""

from typing import Any

import pytest
import torch
from test_layerwise import unet, work_on
from torch import Tensor, nn

from qdexp.config import Quant
from qdexp.config.quantizing import ActGrid
from qdexp.methods import Smooth
from qdexp.methods.smooth import SEARCHED
from qdexp.quant.layers import to_quantized
from qdexp.quant.transforms import Smoothing


class Layers(nn.Module):
    """Three linear layers one after another; the middle one is smoothed."""

    def __init__(self, channels: int = 12) -> None:
        super().__init__()
        self.first, self.middle, self.last = nn.Linear(channels, channels), nn.Linear(channels, 7), nn.Linear(7, channels)

    def forward(self, x: Tensor, t: Tensor) -> Any:
        return self.last(self.middle(self.first(x)))


def smoothed(network: Layers, x: Tensor, step: Smooth, quant: Quant) -> Tensor:
    work = work_on(network, (x, torch.arange(len(x))), quant)
    step.apply(work)
    middle: Any = network.middle
    (transform,) = middle.transforms
    factors: Tensor = transform.factors
    return factors


W4A4 = Quant(4, 4, softmax_bits=8, first_last_bits=8)


@pytest.mark.parametrize("alpha", [0, 0.3, 0.5, 1])
def test_the_factors_are_those_of_the_paper(alpha: float) -> None:
    """s_j = max |X_j|^alpha / max |W_j|^(1 - alpha), written out; rounded to bfloat16."""
    network, x = Layers(), torch.randn(64, 3, 12)
    read, weight = network.first(x).detach(), network.middle.weight.detach()
    expected = [read[..., j].abs().max().item() ** alpha / weight[:, j].abs().max().item() ** (1 - alpha) for j in range(12)]
    found = smoothed(network, x, Smooth(alpha=alpha), W4A4)
    assert found.tolist() == torch.tensor(expected).to(torch.bfloat16).tolist()


def test_channels_that_are_never_read_or_never_multiplied_stay_as_they_are() -> None:
    network, x = Layers(), torch.randn(8, 12)
    with torch.no_grad():
        network.first.weight[2], network.first.bias[2], network.middle.weight[:, 5] = 0, 0, 0
    found = smoothed(network, x, Smooth(alpha=0.5), W4A4)
    assert (found[2], found[5]) == (1, 1)
    assert found.isfinite().all()


def rounded(values: Tensor, bits: int, dim: int | None) -> Tensor:
    """Nearest, asymmetric, from end to end, of the whole tensor or of each index along a dimension; in double precision."""
    values = values.double()
    lo, hi = (values.min(), values.max()) if dim is None else (values.amin(dim, True), values.amax(dim, True))
    lo, hi = lo.clamp_max(0), hi.clamp_min(0)
    scale = (hi - lo) / (2**bits - 1)
    zero = (-lo / scale).round()
    return ((values / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale


def truncated(matrix: Tensor, rank: int) -> Tensor:
    u, values, v = torch.linalg.svd(matrix.double(), full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ v[:rank]


@pytest.mark.parametrize(("time", "rank"), [("static", None), ("dynamic", None), ("static", 2)])
def test_the_search_finds_the_exponents_with_the_least_error_of_the_output(time: Any, rank: int | None) -> None:
    """All 39 of them by hand, on a layer some of whose channels are much larger: weight by output channel, input by tensor, or,
    where the grid is of each call, by row. With branches to come, only what these leave of the weight is rounded."""
    assert len(SEARCHED) == len(set(SEARCHED)) == 39
    network, x = Layers(), torch.randn(64, 12)
    with torch.no_grad():
        network.first.weight[:3] *= 20
        network.middle.weight[:, 4] *= 5
    read, weight, bias = network.first(x).detach(), network.middle.weight.detach(), network.middle.bias.detach()
    errors = []
    for alpha, beta in SEARCHED:
        factors = (read.abs().amax(0) ** alpha / weight.abs().amax(0) ** beta).to(torch.bfloat16).float()
        x_hat = rounded(read / factors, 4, None if time == "static" else 1)
        scaled = weight * factors
        beside = truncated(scaled, rank or 0)
        found = x_hat @ rounded(scaled - beside, 4, 1).mT + (read / factors).double() @ beside.mT + bias
        errors.append((found - (read @ weight.mT + bias)).square().sum().item())
    best = min(range(len(SEARCHED)), key=errors.__getitem__)
    assert errors[best] < 0.8 * errors[0], "smoothing helps here"
    alpha, beta = SEARCHED[best]
    expected = (read.abs().amax(0) ** alpha / weight.abs().amax(0) ** beta).to(torch.bfloat16)
    quant = Quant(4, 4, softmax_bits=8, first_last_bits=8, act=ActGrid(time=time))
    found = smoothed(network, x, Smooth(rank=rank), quant)
    assert torch.equal(found.to(torch.bfloat16), expected)


def test_where_activations_stay_as_they_are_weights_alone_are_made_easy() -> None:
    network, x = Layers(), torch.randn(64, 12)
    found = smoothed(network, x, Smooth(), Quant(3, 32, softmax_bits=32, first_last_bits=8))
    assert found.isfinite().all()


def test_only_the_first_rows_are_looked_at() -> None:
    factors = []
    for scale in (1, 100):
        torch.manual_seed(0)
        network, x = Layers(), torch.randn(64, 12)
        x[32:] *= scale
        factors.append(smoothed(network, x, Smooth(rows=32), W4A4))
    assert torch.equal(*factors)


def test_it_takes_the_coordinates_that_it_finds() -> None:
    """Of a layer that is smoothed already what is left to do is little."""
    network, x = Layers(), torch.randn(64, 12)
    layer = to_quantized(network.middle)
    weight, read = network.middle.weight.detach(), network.first(x).detach()
    before = (read.abs().amax(0) / weight.abs().amax(0)).sqrt()
    layer.transforms.append(Smoothing.by(before, -1))
    Smooth(alpha=0.5).apply(work_on(network, (x, torch.arange(64)), W4A4))
    again: Any = layer.transforms[1]
    assert torch.allclose(again.factors, torch.ones(12), rtol=0.02)


def test_grids_that_follow_the_timestep_are_searched_as_static_ones() -> None:
    grids = [ActGrid(time="groups"), ActGrid()]
    one, other = (Smooth().depends_on(Quant(4, 4, softmax_bits=8, first_last_bits=8, act=grid)) for grid in grids)
    assert one == other
    network, batch = unet()
    Smooth().apply(work_on(network, batch, one))
