"""The calibration set: rows (x_t, t) that a strategy chooses from the recorded trajectory, with the network's conditions.

With guidance the network is called twice, so each chosen row is there twice in turn: in the conditional and in the
unconditional branch.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor
from torch.utils import _pytree as pytree

from qdexp import files
from qdexp.calib.selection import choose_positions, choose_rows
from qdexp.config import Calib, Config
from qdexp.sampling.conditions import flatten, unflatten
from qdexp.sampling.sampler import Sampler, timesteps_of
from qdexp.sampling.shards import read_shards
from qdexp.stages.base import Stage
from qdexp.stages.conditions import ConditionsStage, read_conditions
from qdexp.stages.trajectory import TrajectoryStage, calibration_trajectory

if TYPE_CHECKING:  # no code of quantization is behind the rows
    from qdexp.quant.blocks import Batch

FILE = "rows.safetensors"
CONDITION = "condition."


@dataclass(frozen=True, eq=False, kw_only=True)
class CalibrationStage(Stage):
    """``rows.safetensors``: ``x_t`` float32 [rows, c, h, w], ``t`` [rows], int64 or between whole timesteps float32, and the
    conditions under ``condition.NAME`` [rows, ...]; every prefix is stratified over t."""

    name = "calibration"
    quick = True

    calib: Calib
    seed: int
    trajectory: TrajectoryStage
    conditions: ConditionsStage | None

    @classmethod
    def of(cls, config: Config) -> "CalibrationStage":
        trajectory = calibration_trajectory(config)
        return cls(
            device=trajectory.device,
            calib=config.calib,
            seed=config.seed,
            trajectory=trajectory,
            conditions=trajectory.conditions,
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        walked = self.trajectory
        sampler = Sampler(walked.model, walked.sampler)
        pairs = torch.tensor(_chosen(self.calib, sampler.steps, walked.stream.n, self.seed))
        position, sample = pairs.unbind(dim=1)
        timesteps = torch.tensor(sampler.timesteps)
        conditions = read_conditions(inputs, walked.sampler.guidance)
        asked = conditions.of(sample.tolist(), torch.device("cpu"))
        condition = pytree.tree_map(lambda *branches: torch.stack(branches, 1).flatten(0, 1), *asked.branches)
        sample, position = (part.repeat_interleave(conditions.branches) for part in (sample, position))
        rows = {"x_t": _rows(inputs["trajectory"], sample, position), "t": timesteps[position].contiguous()}
        files.write_tensors(folder / FILE, rows | flatten(condition, CONDITION))


def read_batches(folder: Path, size: int, device: torch.device, rows: int | None = None) -> "list[Batch]":
    """The calibration set in ``folder``, or its first ``rows``, on ``device``, in batches of ``size``."""
    whole = read_rows(folder)
    stop = len(whole[0]) if rows is None else min(rows, len(whole[0]))
    return [_cut(whole, slice(start, min(start + size, stop)), device) for start in range(0, stop, size)]


def _cut(batch: "Batch", rows: slice, device: torch.device) -> "Batch":
    """Cut these rows out of every tensor in a batch."""
    part: Batch = pytree.tree_map(lambda tensor: tensor[rows].to(device), batch)
    return part


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
    return _chosen(config.calib, len(timesteps_of(config.model, config.protocol)), config.trajectory.samples, config.seed)


def _chosen(calib: Calib, steps: int, samples: int, seed: int) -> list[tuple[int, int]]:
    strategy = instantiate(calib.strategy, _partial_=True)
    return choose_rows(choose_positions(strategy, steps, calib.timesteps, seed), calib.rows, samples, seed)


def read_rows(folder: Path) -> Sequence[Any]:
    """The whole calibration set as one batch: x_t and t, and the conditions by their names where there are any."""
    rows = load_file(folder / FILE)
    condition = unflatten(rows, CONDITION)
    return (rows["x_t"], rows["t"], condition) if condition else (rows["x_t"], rows["t"])
