"""A metric of the network as a stage. A module of its own: a change of how networks are made measures no image again."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from qdexp import models
from qdexp.config import Config, Model
from qdexp.metrics.base import RUNNING, Material
from qdexp.metrics.running import Running
from qdexp.models.conditions import example_condition, has_example
from qdexp.quant.blocks import Batch
from qdexp.sampling.noise import draw, generators
from qdexp.stages.conditions import ConditionsStage, read_conditions
from qdexp.stages.metric import MetricStage
from qdexp.stages.quantized import Quantized


@dataclass(frozen=True, kw_only=True)
class FullPrecision:
    """The network in place of a ``Quantized`` one where nothing is."""

    model: Model
    files: Mapping[str, Path]
    channels_last: bool

    def saved(self, inputs: Mapping[str, Path]) -> nn.Module:
        return models.build(self.model, self.channels_last)

    def lowered(self, network: nn.Module) -> nn.Module:
        return network


@dataclass(frozen=True, kw_only=True)
class Source:
    """The source of a running network, and the rows of its batches; ``conditions``: those of the images, for a network whose
    conditions cannot be made up."""

    network: Quantized | FullPrecision
    model: Model
    batch: int
    conditions: ConditionsStage | None

    @classmethod
    def of(cls, config: Config, quantized: Quantized | None, conditions: ConditionsStage | None) -> "Source":
        model, sampling = config.model.bare, config.sampling
        whole = FullPrecision(model=model, files=models.files(config.model), channels_last=sampling.channels_last)
        known = has_example(config.model)
        return cls(network=quantized or whole, model=model, batch=sampling.batch, conditions=None if known else conditions)

    def running(self, inputs: dict[str, Path], device: torch.device) -> Running:
        """The network, and its example; ``inputs``: folders, by the roles of the stages."""
        network = self.network.saved(inputs).to(device)
        x_t = draw(generators("evaluation", 0, range(self.batch)), tuple(self.model.shape)).to(device)
        t = torch.zeros(self.batch, dtype=torch.int64, device=device)
        example: Batch = (x_t, t, example_condition(network, self.batch, self.model.example))
        if self.conditions is not None:
            example = read_conditions(inputs, guidance=1).of(range(self.batch), device).batch(x_t, t)
        return Running(network=self.network.lowered(network), example=example)


@dataclass(frozen=True, eq=False, kw_only=True)
class RunningMetricStage(MetricStage):
    """A metric that needs the network as the cell runs it, as a stage."""

    source: Source

    def material(self, inputs: dict[str, Path]) -> Material:
        plain = super().material(inputs)
        return Material(
            device=plain.device,
            folders=plain.folders,
            values={**plain.values, RUNNING: self.source.running(inputs, self.device)},
            files=plain.files,
        )
