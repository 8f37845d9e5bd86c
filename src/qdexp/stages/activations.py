"""What the layers of the full-precision network read, step by step: ranges, and histograms of the shortcuts' two parts."""

import json
from pathlib import Path
from typing import Any

import torch

from qdexp import files, models
from qdexp.metrics.inspection import Histogram, input_ranges, shortcut_histograms
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import first_rows
from qdexp.stages.base import Stage, network_options
from qdexp.stages.conditions import read_conditions
from qdexp.stages.trajectory import heldout_trajectory

FILE = "activations.json"


class ActivationsStage(Stage):
    """``activations.json``, from the first ``inspection.rows`` held-out trajectories, or all where there are fewer.

    ``timestep`` [steps]; ``ranges``: for each layer ``low`` and ``high`` [steps] of its input; ``shortcuts``: for each that
    reads a concatenation its bins' ``low`` and ``high`` end and, for each of its ``parts``, ``counts`` and ``range``.
    """

    name = "activations"
    version = 3
    sources = ("qdexp.stages.activations", "qdexp.metrics.inspection", "qdexp.sampling", "qdexp.models", "qdexp.quant")

    @property
    def inputs(self) -> dict[str, Stage]:
        trajectory = heldout_trajectory(self.config)
        return {"trajectory": trajectory, **trajectory.inputs}

    @property
    def options(self) -> dict[str, Any]:
        return {"rows": self.config.inspection.rows, **network_options(self.config)}

    @property
    def files(self) -> dict[str, Path]:
        return models.files(self.config.model)

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        network = models.build(self.config.model, self.config.sampling.channels_last).to(self.device)
        timesteps = Sampler(self.config.model, self.config.protocol).timesteps
        x_t = first_rows(inputs["trajectory"], "x_t", self.config.inspection.rows).to(self.device)
        conditions, parts = read_conditions(inputs, self.config), torch.arange(len(x_t)).split(self.config.sampling.batch)
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
