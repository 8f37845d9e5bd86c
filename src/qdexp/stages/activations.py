"""The inputs of the layers of the full-precision network, step by step: ranges, and histograms of the two parts of
shortcuts."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from qdexp import files, models
from qdexp.config import Config, Model, Sampling
from qdexp.metrics.inspection import Histogram, input_ranges, shortcut_histograms
from qdexp.sampling.sampler import timesteps_of
from qdexp.sampling.shards import first_rows
from qdexp.stages.base import Stage
from qdexp.stages.conditions import ConditionsStage, read_conditions
from qdexp.stages.trajectory import TrajectoryStage

FILE = "activations.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class ActivationsStage(Stage):
    """``activations.json``, from the first ``inspection.rows`` held-out trajectories, or all where there are fewer.

    ``timestep`` [steps]; ``ranges``: for each layer ``low`` and ``high`` [steps] of its input; ``shortcuts``: for each that
    reads a concatenation its bins' ``low`` and ``high`` end and, for each of its ``parts``, ``counts`` and ``range``.
    """

    name = "activations"

    model: Model
    files: Mapping[str, Path]
    sampling: Sampling
    rows: int
    trajectory: TrajectoryStage
    conditions: ConditionsStage | None

    @classmethod
    def of(cls, config: Config, heldout: TrajectoryStage) -> "ActivationsStage":
        return cls(
            device=heldout.device,
            model=heldout.model,
            files=heldout.files,
            sampling=config.sampling,
            rows=config.inspection.rows,
            trajectory=heldout,
            conditions=heldout.conditions,
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        network = models.build(self.model, self.sampling.channels_last).to(self.device)
        sampler = self.trajectory.sampler
        timesteps = timesteps_of(self.model, sampler)
        x_t = first_rows(inputs["trajectory"], "x_t", self.rows).to(self.device)
        conditions, parts = read_conditions(inputs, sampler.guidance), torch.arange(len(x_t)).split(self.sampling.batch)
        asked = [(part, conditions.of(part.tolist(), self.device)) for part in parts]
        steps = [
            [of.batch(x_t[part, position], torch.full((len(part),), t, device=self.device)) for part, of in asked]
            for position, t in enumerate(timesteps)
        ]
        ranges = input_ranges(network, steps)
        shortcuts = {name: _plain(parts) for name, parts in shortcut_histograms(network, steps, ranges).items()}
        found = {"timestep": timesteps, "ranges": {name: vars(one) for name, one in ranges.items()}, "shortcuts": shortcuts}
        files.write_text(folder / FILE, json.dumps(found))


def _plain(parts: list[Histogram]) -> dict[str, Any]:
    counted = [{"counts": part.counts.tolist(), "range": part.range} for part in parts]
    return {"low": parts[0].low, "high": parts[0].high, "parts": counted}
