"""On which rows of the calibration set activation ranges are estimated."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from step_helpers import work_of
from torch import nn

from qdexp.cell import Cell
from qdexp.models import checkpoint
from qdexp.quant import qparams_from_range
from qdexp.stages.calibration import read_rows
from qdexp.store import Store

CellOf = Callable[..., Cell]


@pytest.mark.parametrize(("rows", "seen"), [(1, 2), (3, 3), (None, 8)])
def test_activation_ranges_are_those_of_the_first_rows(cell_of: CellOf, rows: int | None, seen: int) -> None:
    """The first convolution reads x_t itself; of 8 rows of 2 timesteps, in batches of 2. No timestep goes unseen."""
    option = f"quantizer.steps.act.rows={'null' if rows is None else rows}"
    cell = cell_of("quantizer=linear", option, "sampling.batch=2")
    store = Store(cell.out)
    network: Any = checkpoint.load(cell.stages["act"].make(store).folder / "checkpoint")
    x_t, t = (part[:seen] for part in read_rows(store.folder(cell.stages["calibration"].entry)))
    scheme = network.conv_in.input_quantizer.scheme
    low, high = x_t.aminmax()
    expected = qparams_from_range(low.view(1), high.view(1), scheme)
    assert torch.equal(network.conv_in.input_quantizer.scale, expected.scale)
    assert len(x_t) == seen
    assert len(t.unique()) == 2


@pytest.mark.parametrize(
    ("rows", "expected"), [(1, [2]), (2, [2]), (3, [3]), (4, [3, 1]), (6, [3, 3]), (9, [3, 3, 1]), (None, [3, 3, 1])]
)
def test_first_rows_cut_a_batch_in_two_where_they_end(cell_of: CellOf, rows: int | None, expected: list[int]) -> None:
    x_t, t = torch.arange(7.0), torch.arange(7) + 7
    work = work_of(cell_of().config, nn.Identity(), list(zip(x_t.split(3), t.split(3), strict=True)))
    found = work.first(rows)
    assert [len(part[0]) for part in found] == expected
    for whole, parts in zip((x_t, t), zip(*found, strict=True), strict=True):
        assert torch.equal(torch.cat(parts), whole[: sum(expected)])
