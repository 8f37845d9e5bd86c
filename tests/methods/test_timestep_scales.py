"""Grids that know the timestep, as cells: what is computed, shared, stored, learned and refused."""

from collections.abc import Callable
from typing import Any

import pytest
import torch

import qdexp
from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.models import checkpoint
from qdexp.quant.network import activation_quantizers
from qdexp.quant.scheme import TimeGroups
from qdexp.stages.calibration import read_rows
from qdexp.store import Store

CellOf = Callable[..., Cell]
GROUPS = ("quant.act.time=groups", "quant.act.groups=2")


def network_of(cell: Cell) -> Any:
    """The quantized network of a cell."""
    last = cell.stages[cell.steps[-1].slot]
    return qdexp.load(last.make(Store(cell.out)).folder / checkpoint.FOLDER)


def kinds(network: Any) -> set[str]:
    found = (quantizer.scheme.time for _, quantizer in activation_quantizers(network) if not quantizer.fixed)
    return {time if isinstance(time, str) else type(time).__name__ for time in found}


def test_each_group_of_timesteps_has_ranges_of_its_own(cell_of: CellOf) -> None:
    """Those of the rows of its timesteps: of the first convolution, which reads x_t itself, min and max."""
    cell = cell_of("quantizer=linear", "quantizer.steps.timestep_scales.rows=null", *GROUPS)
    assert [one.slot for one in cell.steps] == ["weights", "act", "timestep_scales"]
    network = network_of(cell)
    assert kinds(network) == {"TimeGroups"}
    assert cell.label.endswith("w4a8+groups")
    x_t, t = read_rows(cell.out / "store" / cell.stages["calibration"].entry)[:2]
    quantizer = network.conv_in.input_quantizer
    (edge,) = quantizer.scheme.time.edges
    for group, rows in enumerate((x_t[t <= edge], x_t[t > edge])):
        assert len(rows)
        width = rows.max().clamp_min(0) - rows.min().clamp_max(0)
        torch.testing.assert_close(quantizer.scale[group].item(), (width / 255).item())


def test_groups_and_static_grids_share_all_but_their_last_step(cell_of: CellOf) -> None:
    static, groups, dynamic = (cell_of("method=timestep_aware", f"quant.act.time={time}", "quant.act.groups=2")
                                for time in ("static", "groups", "dynamic"))  # fmt: skip
    assert static.keys["act"] == groups.keys["act"] != dynamic.keys["act"]
    assert static.keys["weights"] == dynamic.keys["weights"]


def test_a_dynamic_grid_keeps_nothing(cell_of: CellOf) -> None:
    network = network_of(cell_of("method=timestep_aware", "quant.act.time=dynamic"))
    assert kinds(network) == {"dynamic"}
    assert all(quantizer.scale.numel() == 0 for _, quantizer in activation_quantizers(network) if not quantizer.fixed)


def test_scales_of_groups_are_learned_group_by_group(cell_of: CellOf) -> None:
    before = network_of(cell_of("method=reconstruction", "quantizer.steps.scales=null", *GROUPS))
    after = network_of(cell_of("method=reconstruction", "quantizer.steps.scales.rate=0.1", *GROUPS))
    others = dict(activation_quantizers(after))
    moved = [(quantizer.scale, others[name].scale) for name, quantizer in activation_quantizers(before)
             if isinstance(quantizer.scheme.time, TimeGroups)]  # fmt: skip
    assert any(not torch.equal(one[0], other[0]) and not torch.equal(one[1], other[1]) for one, other in moved)


@pytest.mark.parametrize(
    ("arguments", "told"),
    [
        (["method=ptq", *GROUPS, "quant.act.groups=3"], "quant.act.groups=3: the calibration set has rows of 2 timesteps"),
        (["method=timestep_aware", *GROUPS, "quantizer.steps.timestep_scales=null"], "slot timestep_scales"),
        (["method=reconstruction", "quant.act.time=dynamic"], "quantizer.steps.scales=null"),
    ],
)
def test_what_cannot_be_is_refused_before_any_work(cell_of: CellOf, arguments: list[str], told: str) -> None:
    with pytest.raises(UserError, match=told):
        cell_of(*arguments)
