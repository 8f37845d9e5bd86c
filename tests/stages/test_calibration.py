"""The rows of the calibration set are those of the recorded walks that the strategy chose."""

from collections.abc import Callable

import torch

from qdexp.cell import Cell
from qdexp.sampling.shards import read_shards
from qdexp.stages.calibration import chosen_rows, read_rows
from qdexp.store import Store


def test_rows_are_taken_from_all_shards_in_their_order(cell_of: Callable[..., Cell]) -> None:
    cell = cell_of("sampling.batch=3", "trajectory.samples=8", "calib.timesteps=2", "calib.rows=8")
    store = Store(cell.out)
    x_t = read_rows(cell.stages["calibration"].make(store).folder)[0]
    shards = list(read_shards(store.folder(cell.stages["trajectory"].entry), "x_t"))
    assert [len(shard) for shard in shards] == [3, 3, 2]
    walks, chosen = torch.cat(shards), chosen_rows(cell.config)
    assert {sample for _, sample in chosen} == set(range(8))
    assert torch.equal(x_t, torch.stack([walks[sample, position] for position, sample in chosen]))
