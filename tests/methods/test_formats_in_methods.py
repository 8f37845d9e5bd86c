"""Methods with formats whose scales are computed at the call."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.models import checkpoint
from qdexp.quant.network import activation_quantizers, quantized_layers
from qdexp.store import Store

CellOf = Callable[..., Cell]
WIDE = ("model.network.block_out_channels=[24,24]", "model.network.norm_num_groups=4", "model.weights=random")


@pytest.mark.parametrize(
    ("choice", "scales"), [("int4_g64", True), ("nvfp4", True), ("fp8_tensor", True), ("w4a16", False), ("fp8", False)]
)
def test_scales_are_learned_where_there_are_any_beforehand(cell_of: CellOf, choice: str, scales: bool) -> None:
    """Of formats of 4 bits those of the first and the last layer; of those of 8 bits there are none."""
    stages = cell_of("method=qdiffusion", f"quant={choice}").stages
    assert ("scales" in stages) == scales
    assert ("act" in stages) == (choice != "w4a16")


@pytest.mark.slow  # 20 s each
@pytest.mark.parametrize("choice", ["int4_g16", "nvfp4"])
def test_the_whole_method_with_groups(cell_of: CellOf, choice: str) -> None:
    """GPTQ's start, learned rounding and split shortcuts in groups; the scales of the static grids alone are learned."""
    cell = cell_of("method=qdiffusion", f"quant={choice}", "recon.scales.rate=0.1", *WIDE)
    record = cell.run()
    assert record["axes"]["quant"] == {"int4_g16": "w4a4+g16", "nvfp4": "w4a4+nvfp4"}[choice]
    store = Store(cell.out)
    before, after = (checkpoint.load(cell.stages[step].make(store).folder / checkpoint.FOLDER) for step in ("act", "scales"))
    learned = dict(activation_quantizers(after))
    moved = {name for name, one in activation_quantizers(before) if not torch.equal(one.scale, learned[name].scale)}
    assert moved <= {"conv_in.input_quantizer", "conv_out.input_quantizer"}
    grouped = [layer for _, layer in quantized_layers(after) if "groups of 16" in str(layer.weight_scheme)]
    assert len(grouped) > 10
    assert record["metrics"]["size_nominal_mb"] < record["metrics"]["size_stored_mb"]


@pytest.mark.slow  # 20 s each
@pytest.mark.parametrize("choice", ["int4_g16", "w4a4"])
def test_all_steps_together(cell_of: CellOf, choice: str) -> None:
    """Weights that learn beside branches, in attention too, for inputs that are quantized before."""
    cell = cell_of("method=combined", f"quant={choice}", "quantizer.steps.low_rank={rank: 2, rounds: 2}", *WIDE)
    assert list(cell.run()["reconstruction"]["weights"])
    assert [one.slot for one in cell.steps] == ["smooth", "low_rank", "act", "weights"]


def test_another_format_of_activations_shares_the_weights(cell_of: CellOf) -> None:
    keys = [cell_of("method=timestep_aware", f"quant={choice}").keys for choice in ("int4_g64", "w4a16", "w4a8_g64", "w4a4")]
    assert len({each["weights"] for each in keys[:3]}) == 1
    assert keys[3]["weights"] != keys[0]["weights"]


@pytest.mark.parametrize("choice", ["int4_g64", "fp8"])
def test_a_released_checkpoint_has_integers(cell_of: CellOf, choice: str, tmp_path: Any) -> None:
    file = tmp_path / "released.pth"
    file.touch()
    options = ("quantizer=released", f"quantizer.steps.released.file={file}", "quant.first_last_bits=null")
    grid = {"int4_g64": "quant.weight={granularity: per_group, group: 64}", "fp8": "quant.act={number: e4m3, symmetric: true}"}
    bits = {"int4_g64": "quant=w4a8", "fp8": "quant=w8a8"}
    with pytest.raises(UserError, match="in a released checkpoint all grids are of integers"):
        cell_of(*options, bits[choice], grid[choice])
