"""Branches of low rank against the formulas of SVDQuant, and what they cost."""

import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from test_layerwise import NETWORKS, built, estimate, unet, work_on
from test_smooth import W4A4, Layers
from torch import Tensor

from qdexp.cell import Cell
from qdexp.config import Quant
from qdexp.errors import UserError
from qdexp.methods import LowRank, Rotate, Smooth
from qdexp.models import checkpoint
from qdexp.quant import PerChannel, Scheme
from qdexp.quant.low_rank import approximated, refined
from qdexp.quant.network import quantized_layers
from qdexp.quant.packed import added_bytes
from qdexp.store import Store

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]


def truncated(matrix: Tensor, rank: int) -> Tensor:
    """The best approximation of this rank, by a whole decomposition in double precision."""
    u, values, v = torch.linalg.svd(matrix.double().flatten(1), full_matrices=False)
    return (u[:, :rank] * values[:rank]) @ v[:rank]


def rounded(weight: Tensor, bits: int) -> Tensor:
    """Nearest, asymmetric, from end to end of each output channel."""
    lo, hi = weight.amin(1, True).clamp_max(0), weight.amax(1, True).clamp_min(0)
    scale = (hi - lo) / (2**bits - 1)
    zero = (-lo / scale).round()
    return ((weight / scale).round() + zero).clamp(0, 2**bits - 1).sub(zero) * scale


@pytest.mark.parametrize("shape", [(20, 30), (30, 20), (16, 8, 3, 3), (12, 8, 3)])
def test_the_product_is_the_best_of_its_rank(shape: tuple[int, ...]) -> None:
    weight = torch.randn(shape)
    branch = approximated(weight, 4, seed=0)
    assert branch.product().shape == shape
    for factor in (branch.up, branch.down):
        assert torch.equal(factor, factor.to(torch.bfloat16).float())
    expected = truncated(weight, 4)
    assert (branch.product().flatten(1) - expected).norm() < 2**-7 * expected.norm()


def test_large_weights_are_decomposed_at_random_but_always_alike() -> None:
    """What is left is as much as of the best approximation, to a thousandth; nobody's random numbers are drawn."""
    weight = torch.randn(700, 200) @ torch.diag(0.97 ** torch.arange(200.0)) @ torch.randn(200, 600)
    before = torch.get_rng_state()
    first, again, other = (approximated(weight, 32, seed) for seed in (0, 0, 1))
    assert torch.equal(torch.get_rng_state(), before)
    assert torch.equal(first.kept(), again.kept())
    assert not torch.equal(first.kept(), other.kept())
    best = (weight - truncated(weight, 32)).norm()
    assert best < 0.5 * weight.norm()
    assert (weight - first.product()).norm() < 1.001 * best + 2**-8 * weight.norm()


def test_rounds_are_those_of_the_paper() -> None:
    """L = SVD(W), then again and again Q = round(W - L), L = SVD(W - Q); written out in double precision."""
    weight = torch.randn(16, 24) + 3 * torch.randn(16, 2) @ torch.randn(2, 24)
    found = list(refined(weight, Scheme(3, PerChannel(0)), rank=2, rounds=4, seed=0))
    left = weight.double()
    for number, branch in enumerate(found):
        expected = truncated(left, 2)
        assert (branch.product() - expected).norm() < 0.02 * expected.norm(), number
        left = weight.double() - rounded(weight.double() - branch.product().double(), 3)


def test_of_all_rounds_the_one_is_kept_with_the_least_error_of_the_output() -> None:
    network, x = Layers(), torch.randn(64, 12)
    with torch.no_grad():
        network.first.weight[:2] *= 10  # inputs that are much alike: not what is nearest to the weight is best
    read, weight = network.first(x).detach(), network.middle.weight.detach().clone()
    branches = list(refined(weight, Scheme(4, PerChannel(0)), rank=2, rounds=8, seed=0))
    errors = []
    for branch in branches:
        residual = weight.double() - branch.product()
        errors.append((read.double() @ (residual - rounded(residual, 4)).mT).square().sum().item())
    best = min(range(8), key=errors.__getitem__)
    assert errors[best] < errors[0]
    LowRank(rank=2, rounds=8).apply(work_on(network, (x, torch.arange(64)), W4A4))
    middle: Any = network.middle
    assert torch.equal(middle.branch.kept(), branches[best].kept())
    assert middle.weight_scheme is None


@pytest.mark.parametrize("before", [[], [Smooth(alpha=0.5)], [Rotate()], [Smooth(alpha=0.5), Rotate(size=4)]])
@pytest.mark.parametrize("name", NETWORKS)
def test_in_full_precision_nothing_changes(name: str, before: list[Any]) -> None:
    network, batch = built(name)
    expected = estimate(network, batch)
    work = work_on(network, batch)
    for step in (*before, LowRank(rank=4, rounds=2)):
        step.apply(work)
    found = estimate(network, batch)
    assert (found - expected).abs().max() < 1e-5 * expected.abs().max()
    branches = [layer.branch for _, layer in quantized_layers(network) if layer.branch is not None]
    assert len(branches) > 10
    assert {branch.rank for branch in branches} == {4}


def test_a_rank_that_no_weight_has_is_the_largest_it_has() -> None:
    network, batch = unet()
    LowRank(rank=1000, rounds=1).apply(work_on(network, batch))
    for _, layer in quantized_layers(network):
        if layer.branch is not None:
            assert layer.branch.rank == min(layer.weight.flatten(1).shape)


def test_it_is_the_same_for_all_bits_of_activations(cell_of: CellOf) -> None:
    step = ["quantizer=gptq", "quantizer.steps.low_rank={_target_: qdexp.methods.LowRank}"]
    found = {quant: cell_of(*step, f"quant={quant}").keys for quant in ("w4a8", "w4a4", "w3a8", "w4a32")}
    assert found["w4a8"]["weights"] == found["w4a4"]["weights"] == found["w4a32"]["weights"]
    assert found["w4a8"]["low_rank"] != found["w3a8"]["low_rank"]
    assert "low_rank" not in cell_of(*step, "quant=w32a8").keys


def test_a_cell_and_what_it_costs(cell_of: CellOf) -> None:
    """Branches count 16 bits a number in stored and nominal size, and their products 16 x 16 bits in operations."""
    cell = cell_of("method=svdquant", "quantizer.steps.low_rank.rank=4", "quantizer.steps.low_rank.rounds=2")
    assert [one.slot for one in cell.steps] == ["smooth", "low_rank", "weights", "act"]
    store = Store(cell.out)
    coverage = json.loads((cell.stages["coverage"].make(store).folder / "coverage.json").read_text())
    folder = store.folder(cell.stages["act"].entry) / "checkpoint"
    network = checkpoint.load(folder)
    branches = [layer.branch for _, layer in quantized_layers(network) if layer.branch is not None]
    tensors = checkpoint.load_file(folder / "checkpoint.safetensors")
    numbers = sum(branch.up.numel() + branch.down.numel() for branch in branches)
    assert len(branches) > 20
    assert tensors["quantized.low_rank"].dtype == torch.bfloat16
    assert len(tensors["quantized.low_rank"]) == numbers
    parameters = coverage["total"]["parameters"]
    channels = len(tensors["quantized.smoothing"])
    assert added_bytes(network) == 2 * numbers + 2 * channels
    assert coverage["nominal_bytes"] == parameters * 4 / 8 + added_bytes(network)
    shares, macs = coverage["macs"], coverage["total"]["macs"]
    own = sum(macs * share for label, share in shares.items() if label != "w16a16")
    assert 0.05 < shares["w16a16"] < 1
    assert coverage["quantized"] == {"macs": 1.0, "parameters": 1.0}
    assert coverage["bit_operations"] > macs * shares["w16a16"] * 16 * 16
    plain = cell_of("quantizer=gptq")
    without = json.loads((plain.stages["coverage"].make(Store(plain.out)).folder / "coverage.json").read_text())
    assert own == pytest.approx(without["total"]["macs"])
    assert coverage["bit_operations"] == pytest.approx(without["bit_operations"] + macs * shares["w16a16"] * 256)


BAD = {
    "no rank": (["quantizer.steps.low_rank.rank=0"], ["steps.low_rank.rank=0"]),
    "less than no rank": (["quantizer.steps.low_rank.rank=-3"], ["steps.low_rank.rank=-3"]),
    "no round": (["quantizer.steps.low_rank.rounds=0"], ["steps.low_rank.rounds=0"]),
    "smoothed once there are branches": (
        ["quantizer.steps.mine={_target_: qdexp.methods.Smooth, before: weights}"],
        ["steps.mine", "stands after low_rank, which makes the low-rank branches", "before: low_rank"],
    ),
    "rotated once there are branches": (
        ["quantizer.steps.mine={_target_: qdexp.methods.Rotate, before: weights}"],
        ["steps.mine", "before: low_rank"],
    ),
    "branches of branches": (
        ["quantizer.steps.mine={_target_: qdexp.methods.LowRank, before: weights}"],
        ["steps.mine", "before: low_rank"],
    ),
    "branches once the weights are rounded": (
        ["quantizer.steps.low_rank=null", "quantizer.steps.mine={_target_: qdexp.methods.LowRank, before: act}"],
        ["steps.mine", "before: weights"],
    ),
}


@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line_before_any_work(qdexp: Command, case: str) -> None:
    options, told = BAD[case]
    code, _, err = qdexp("quantizer=svdquant", *options)
    assert code == 1
    assert err.startswith("qdexp: ")
    assert err.count("\n") <= 1
    assert all(part in err for part in told), err


def test_where_no_weight_is_quantized_it_finds_nothing() -> None:
    network, batch = unet()
    with pytest.raises(UserError, match="LowRank finds no layer"):
        LowRank().apply(work_on(network, batch, Quant(32, 8, softmax_bits=8, first_last_bits=8)))
