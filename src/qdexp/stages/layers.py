"""Each quantized layer alone in the full-precision network: its own error, and what it does to the noise estimate."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from qdexp import files, models
from qdexp.metrics.inspection import layer_errors
from qdexp.quant import checkpoint
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.network import FLOAT, execution_order, quantized_layers
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import first_rows
from qdexp.stages.base import Stage, network_options
from qdexp.stages.conditions import read_conditions
from qdexp.stages.conversion import CHECKPOINT
from qdexp.stages.quantization import QuantizationStage
from qdexp.stages.trajectory import heldout_trajectory

FILE = "layers.json"


class LayersStage(Stage):
    """``layers.json``, from ``inspection.rows`` rows spread over the steps of held-out trajectories, or all if there are fewer.

    A list in execution order, of each layer ``name``, ``weight_bits``, ``act_bits``, ``macs`` (for one image), ``error`` and
    ``sensitivity``; layers that stayed in full precision have errors of 0. Products inside attention are no layers.
    """

    name = "layers"
    version = 4
    sources = ("qdexp.stages.layers", "qdexp.metrics.inspection", "qdexp.sampling", "qdexp.models", "qdexp.quant")

    @property
    def inputs(self) -> dict[str, Stage]:
        trajectory = heldout_trajectory(self.config)
        return {"quantization": QuantizationStage(self.config), "trajectory": trajectory, **trajectory.inputs}

    @property
    def options(self) -> dict[str, Any]:
        return {"rows": self.config.inspection.rows, **network_options(self.config)}

    @property
    def files(self) -> dict[str, Path]:
        return models.files(self.config.model)

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        network = models.build(self.config.model, self.config.sampling.channels_last).to(self.device)
        batches = self._batches(inputs)
        quantized = checkpoint.load(inputs["quantization"] / CHECKPOINT).to(self.device)
        converted = dict(quantized_layers(quantized))
        order = execution_order(network, first_row(batches[0]))
        layers = {name: quantized.get_submodule(name) for name in order}
        errors = layer_errors(network, layers, batches)
        found = [{"name": name, **_bits(converted.get(name)), **asdict(error)} for name, error in errors.items()]
        files.write_text(folder / FILE, json.dumps(found))

    def _batches(self, inputs: dict[str, Path]) -> list[Batch]:
        """Rows of the first trajectories, no two alike, the steps in turn, as they are asked for."""
        timesteps = torch.tensor(Sampler(self.config.model, self.config.protocol).timesteps)
        walks = first_rows(inputs["trajectory"], "x_t", self.config.inspection.rows)
        numbers = torch.arange(min(self.config.inspection.rows, len(walks) * len(timesteps)))
        steps = numbers % len(timesteps)
        samples = (numbers // len(timesteps) + steps) % len(walks)
        conditions = read_conditions(inputs, self.config)
        batches: list[Batch] = []
        for sample, step in zip(*(part.split(self.config.sampling.batch) for part in (samples, steps)), strict=True):
            asked = conditions.of(sample.tolist(), self.device)
            batches.append(asked.batch(walks[sample, step].to(self.device), timesteps[step].to(self.device)))
        return batches


def _bits(layer: QuantizedLayer | None) -> dict[str, int]:
    weight = getattr(layer, "weight_scheme", None)
    act = getattr(getattr(layer, "input_quantizer", None), "scheme", None)
    return {"weight_bits": weight.bits if weight else FLOAT, "act_bits": act.bits if act else FLOAT}
