"""The calibration set: rows (x_t, t) that a strategy chooses from the recorded trajectory, with what the network is asked for.

With guidance the network is called twice, so each chosen row is there twice in turn: as asked, and with the empty condition.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor
from torch.utils import _pytree as pytree

from qdexp import files
from qdexp.calib.selection import choose_positions, choose_rows
from qdexp.config import Config
from qdexp.sampling.conditions import flatten, unflatten
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import read_shards
from qdexp.stages.base import Stage, identity
from qdexp.stages.conditions import read_conditions
from qdexp.stages.trajectory import calibration_trajectory

FILE = "rows.safetensors"
CONDITION = "condition."


class CalibrationStage(Stage):
    """``rows.safetensors``: ``x_t`` float32 [rows, c, h, w], ``t`` [rows], int64 or between whole timesteps float32, and the
    conditions under ``condition.NAME`` [rows, ...]; every prefix is stratified over t."""

    name = "calibration"
    version = 2
    sources = ("qdexp.stages.calibration", "qdexp.calib", "qdexp.sampling")
    quick = True

    @property
    def inputs(self) -> dict[str, Stage]:
        trajectory = calibration_trajectory(self.config)
        return {"trajectory": trajectory, **trajectory.inputs}

    @property
    def options(self) -> dict[str, Any]:
        calib = self.config.calib
        return {
            "timesteps": calib.timesteps,
            "rows": calib.rows,
            "strategy": identity(calib.strategy),
            "seed": self.config.seed,
        }

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        pairs = torch.tensor(chosen_rows(self.config))
        position, sample = pairs.unbind(dim=1)
        timesteps = torch.tensor(Sampler(self.config.model, self.config.protocol).timesteps)
        conditions = read_conditions(inputs, self.config)
        asked = conditions.of(sample.tolist(), torch.device("cpu"))
        condition = pytree.tree_map(lambda *branches: torch.stack(branches, 1).flatten(0, 1), *asked.branches)
        sample, position = (part.repeat_interleave(conditions.branches) for part in (sample, position))
        rows = {"x_t": _rows(inputs["trajectory"], sample, position), "t": timesteps[position].contiguous()}
        files.write_tensors(folder / FILE, rows | flatten(condition, CONDITION))


def _rows(trajectory: Path, sample: Tensor, position: Tensor) -> Tensor:
    """x_t of each pair of sample and position, in their order; one shard at a time is held: all may be tens of GB."""
    numbers, found, first = [], [], 0
    for walks in read_shards(trajectory, "x_t"):
        (here,) = ((first <= sample) & (sample < first + len(walks))).nonzero(as_tuple=True)
        numbers.append(here)
        found.append(walks[sample[here] - first, position[here]])
        first += len(walks)
    return torch.cat(found)[torch.cat(numbers).argsort()].contiguous()


def chosen_rows(config: Config) -> list[tuple[int, int]]:
    """The pairs (position, sample) of the calibration set. Raises UserError where the trajectory cannot give them."""
    calib, seed = config.calib, config.seed
    strategy = instantiate(calib.strategy, _partial_=True)
    positions = choose_positions(strategy, Sampler(config.model, config.protocol).steps, calib.timesteps, seed)
    return choose_rows(positions, calib.rows, config.trajectory.samples, seed)


def read_rows(folder: Path) -> Sequence[Any]:
    """The whole calibration set as one batch: x_t and t, and the conditions by their names where there are any."""
    rows = load_file(folder / FILE)
    condition = unflatten(rows, CONDITION)
    return (rows["x_t"], rows["t"], condition) if condition else (rows["x_t"], rows["t"])
