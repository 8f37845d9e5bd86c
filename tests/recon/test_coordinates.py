"""Rounding and learning of layers in other coordinates, with a branch beside them."""

import copy
import json
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdexp.cell import Cell
from qdexp.config.learning import WeightLearning
from qdexp.models import checkpoint
from qdexp.quant import MinMax, PerChannel, Scheme
from qdexp.quant.affine import quantize
from qdexp.quant.blocks import Rows
from qdexp.quant.layers import to_quantized
from qdexp.quant.low_rank import LowRank
from qdexp.quant.network import quantize_weights, quantized_layers
from qdexp.quant.transforms import Rotation, Smoothing
from qdexp.recon.learning import Site, WeightReconstruction
from qdexp.recon.second_order import round_block
from qdexp.store import Store

CellOf = Callable[..., Cell]
ROWS = 64


class Block(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.layer(x)
        return y


def site(bits: int, branch: bool) -> tuple[Any, Any, Tensor]:
    """A block of one layer in other coordinates, rounded to nearest, that reads something else than the full-precision one."""
    original = Block().requires_grad_(False)
    block = copy.deepcopy(original)
    layer = to_quantized(block.layer, Scheme(bits, PerChannel(0)))
    layer.transforms.extend([Smoothing.by(torch.rand(12) + 0.2, -1), Rotation.drawn([(12, 12)], -1, seed=0)])
    if branch:
        layer.branch = LowRank(torch.randn(5, 2) / 4, torch.randn(2, 12) / 4)
    quantize_weights(block, MinMax(), quantize)
    exact = torch.randn(ROWS, 6) @ torch.randn(6, 12) + torch.randn(ROWS, 12)
    x = exact + 0.3 * torch.randn(ROWS, 12)
    rows, paired = (Rows([((values,), {})], [True], [ROWS]) for values in (x, exact))
    return Site(block, original, rows, [original(exact)], paired, batch=16), layer, x


def error(one: Any, x: Tensor) -> float:
    return float((one.block(x) - one.targets[0]).square().sum())


@pytest.mark.parametrize("branch", [False, True])
def test_second_order_rounding_beats_nearest_in_other_coordinates(branch: bool) -> None:
    one, layer, x = site(3, branch)
    before, grid = error(one, x), layer.weight_qparams
    round_block(one, seed=0)
    assert error(one, x) < 0.6 * before
    assert layer.weight_qparams is not None
    assert torch.equal(layer.weight_qparams.scale, grid.scale)


@pytest.mark.parametrize("branch", [False, True])
def test_on_a_fine_grid_it_finds_the_weight_with_the_least_error(branch: bool) -> None:
    """V minimises |V x + B x - W x'|, x and x' in the layer's coordinates: by least squares in double precision, damped as in
    GPTQ; what is left is the rounding to 8 bits."""
    one, layer, x = site(8, branch)
    before, target = error(one, x), one.targets[0] - one.original.layer.bias
    beside = layer.branch.product() if branch else torch.zeros(5, 12)
    read = layer.transformed(x).double()
    moments = read.mT @ read
    damped = moments + 0.01 * moments.diagonal().mean() * torch.eye(12)
    own = layer.own_weight(one.original.layer.weight).double()
    best = own + ((target.double() - read @ (own + beside).mT).mT @ read) @ damped.inverse()
    least = (read @ (best + beside).mT - target).square().sum().item()
    round_block(one, seed=0)
    assert error(one, x) < 0.9 * before
    assert error(one, x) == pytest.approx(least, rel=0.02)
    assert torch.allclose(layer.weight.double(), best, atol=0.05)


@pytest.mark.parametrize("branch", [False, True])
def test_learning_starts_from_the_weight_in_these_coordinates(branch: bool) -> None:
    one, layer, _ = site(4, branch)
    module = WeightReconstruction(one, WeightLearning(iterations=2, rate=0.1, start="nearest"), 1.0)
    (rounding,) = module._roundings
    own = layer.own_weight(one.original.layer.weight)
    inside = (rounding._levels(rounding.h()) > 0) & (rounding._levels(rounding.h()) < 15)
    assert torch.allclose(rounding.weight(rounding.h())[inside], own[inside], atol=1e-4)
    assert torch.equal(module.learned()["layer"], layer.weight_int)


SMOOTH = "quantizer.steps.smooth={_target_: qdexp.methods.Smooth}"
ROTATE = "quantizer.steps.rotate={_target_: qdexp.methods.Rotate, size: 4}"
BRANCH = "quantizer.steps.low_rank={_target_: qdexp.methods.LowRank, rank: 2, rounds: 2}"
GROUPS = ("quant.act.time=groups", "quant.act.groups=2")


@pytest.mark.parametrize(
    ("arguments", "steps"),
    [
        (["method=smoothquant"], ["smooth", "weights", "act"]),
        (["method=rotation", *GROUPS], ["rotate", "weights", "act", "timestep_scales"]),
        (["method=qdiffusion", SMOOTH, ROTATE, BRANCH], ["split", "smooth", "rotate", "low_rank", "weights", "act", "scales"]),
    ],
)  # fmt: skip
def test_a_cell_of_each(cell_of: CellOf, arguments: list[str], steps: list[str]) -> None:
    cell = cell_of(*arguments)
    assert [one.slot for one in cell.steps] == steps
    store = Store(cell.out)
    coverage = json.loads((cell.stages["coverage"].make(store).folder / "coverage.json").read_text())
    network = checkpoint.load(store.folder(cell.stages[steps[-1]].entry) / "checkpoint")
    changed = [layer for _, layer in quantized_layers(network) if layer.changed]
    assert len(changed) > 20
    assert all(layer.weight_int is not None and layer.input_quantizer.mode == "on" for layer in changed)
    assert coverage["quantized"] == {"macs": 1.0, "parameters": 1.0}
    assert ("w1a16" in coverage["macs"]) == ("rotate" in steps)


def test_what_depends_on_no_bits_is_shared(cell_of: CellOf) -> None:
    """Of W4A8 and W4A4 the rotation, and so the weights; the search of smoothing sees the grids."""
    rotated = [cell_of("method=rotation", f"quant={quant}").keys for quant in ("w4a8", "w4a4", "w3a8")]
    assert rotated[0]["weights"] == rotated[1]["weights"] != rotated[2]["weights"]
    assert rotated[0]["rotate"] == rotated[2]["rotate"]
    searched = [cell_of("method=smoothquant", f"quant={quant}").keys for quant in ("w4a8", "w4a4")]
    assert searched[0]["smooth"] != searched[1]["smooth"]
