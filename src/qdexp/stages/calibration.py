"""The calibration set: rows (x_t, t) that a strategy chooses from the recorded trajectory."""

from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from safetensors.torch import load_file

from qdexp import files
from qdexp.calib.selection import choose_positions, choose_rows
from qdexp.config import Config
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import read_shards
from qdexp.stages.base import Stage, identity
from qdexp.stages.trajectory import calibration_trajectory

FILE = "rows.safetensors"


class CalibrationStage(Stage):
    """``rows.safetensors``: ``x_t`` float32 [rows, c, h, w] and ``t`` int64 [rows]; every prefix is stratified over t."""

    name = "calibration"
    version = 1
    sources = ("qdexp.stages.calibration", "qdexp.calib", "qdexp.sampling")
    quick = True

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"trajectory": calibration_trajectory(self.config)}

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
        walks = torch.cat(list(read_shards(inputs["trajectory"], "x_t")))
        timesteps = torch.tensor(Sampler(self.config.model, self.config.protocol).timesteps)
        rows = {"x_t": walks[sample, position].contiguous(), "t": timesteps[position].contiguous()}
        files.write_tensors(folder / FILE, rows)


def chosen_rows(config: Config) -> list[tuple[int, int]]:
    """The pairs (position, sample) of the calibration set. Raises UserError where the trajectory cannot give them."""
    calib, seed = config.calib, config.seed
    strategy = instantiate(calib.strategy, _partial_=True)
    positions = choose_positions(strategy, config.protocol.steps, calib.timesteps, seed)
    return choose_rows(positions, calib.rows, config.trajectory.samples, seed)


def read_rows(folder: Path) -> tuple[torch.Tensor, torch.Tensor]:
    """``x_t`` and ``t`` of a calibration set."""
    rows = load_file(folder / FILE)
    return rows["x_t"], rows["t"]
