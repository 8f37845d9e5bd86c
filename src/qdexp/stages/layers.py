"""Each quantized layer alone in the full-precision network: its own error, and what it does to the noise estimate."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from qdexp import files, models
from qdexp.config import Config, Model, Sampling
from qdexp.metrics.inspection import layer_errors
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.macs import count, macs_by_module
from qdexp.quant.network import FLOAT, execution_order, quantized_layers
from qdexp.sampling.sampler import timesteps_of
from qdexp.sampling.shards import first_rows
from qdexp.stages.base import Stage
from qdexp.stages.conditions import ConditionsStage, read_conditions
from qdexp.stages.quantized import Quantized
from qdexp.stages.trajectory import TrajectoryStage

FILE = "layers.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class LayersStage(Stage):
    """``layers.json``, from ``inspection.rows`` rows spread over the steps of held-out trajectories, or all if there are fewer.

    A list in execution order, of each layer ``name``, ``weight_bits``, ``act_bits``, ``macs`` (for one image), ``error`` and
    ``sensitivity``; layers that stayed in full precision have errors of 0. Products inside attention are no layers.
    """

    name = "layers"

    model: Model
    files: Mapping[str, Path]
    sampling: Sampling
    rows: int
    quantized: Quantized
    trajectory: TrajectoryStage
    conditions: ConditionsStage | None

    @classmethod
    def of(cls, config: Config, quantized: Quantized, heldout: TrajectoryStage) -> "LayersStage":
        return cls(
            device=heldout.device,
            model=heldout.model,
            files=heldout.files,
            sampling=config.sampling,
            rows=config.inspection.rows,
            quantized=quantized,
            trajectory=heldout,
            conditions=heldout.conditions,
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        network = models.build(self.model, self.sampling.channels_last).to(self.device)
        batches = self._batches(inputs)
        saved = self.quantized.saved(inputs)
        bits = {name: _bits(layer) for name, layer in quantized_layers(saved)}
        order, running = execution_order(network, first_row(batches[0])), self.quantized.lowered(saved)
        layers = {name: running.get_submodule(name) for name in order}
        errors = layer_errors(network, layers, batches)
        macs = macs_by_module(count(network, first_row(batches[0])))
        found = [{"name": name, **bits.get(name, FULL), **asdict(error), "macs": macs[name]} for name, error in errors.items()]
        files.write_text(folder / FILE, json.dumps(found))

    def _batches(self, inputs: dict[str, Path]) -> list[Batch]:
        """Rows of the first trajectories, no two alike, the steps in turn, as they are asked for."""
        sampler = self.trajectory.sampler
        timesteps = torch.tensor(timesteps_of(self.model, sampler))
        walks = first_rows(inputs["trajectory"], "x_t", self.rows)
        numbers = torch.arange(min(self.rows, len(walks) * len(timesteps)))
        steps = numbers % len(timesteps)
        samples = (numbers // len(timesteps) + steps) % len(walks)
        conditions = read_conditions(inputs, sampler.guidance)
        batches: list[Batch] = []
        for sample, step in zip(*(part.split(self.sampling.batch) for part in (samples, steps)), strict=True):
            asked = conditions.of(sample.tolist(), self.device)
            batches.append(asked.batch(walks[sample, step].to(self.device), timesteps[step].to(self.device)))
        return batches


FULL = {"weight_bits": FLOAT, "act_bits": FLOAT}


def _bits(layer: QuantizedLayer) -> dict[str, int]:
    act = getattr(layer.input_quantizer, "scheme", None)
    return {
        "weight_bits": layer.weight_scheme.bits if layer.weight_scheme else FLOAT,
        "act_bits": act.bits if act else FLOAT,
    }
