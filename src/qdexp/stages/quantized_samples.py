"""The images of the evaluation through the quantized network. A module of its own: a change of how networks are quantized makes
no full-precision image again."""

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qdexp import device as devices
from qdexp.config import Config
from qdexp.stages.conditions import conditions_of
from qdexp.stages.quantized import Quantized
from qdexp.stages.samples import SamplesStage, first_stage_files, noise_stream


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizedSamplesStage(SamplesStage):
    """Images of the quantized network. None of the model's own weights are read."""

    quantized: Quantized

    @classmethod
    def of_checkpoint(cls, config: Config, quantized: Quantized) -> "QuantizedSamplesStage":
        stream = noise_stream(config)
        return cls(
            device=devices.resolve(config.device),
            model=replace(config.model, condition=None),
            files=first_stage_files(config.model),
            sampling=config.sampling,
            sampler=config.protocol.sampler,
            pixels=config.protocol.pixels,
            stream=stream,
            conditions=conditions_of(config, stream),
            quantized=quantized,
        )

    def network(self, inputs: dict[str, Path]) -> torch.nn.Module:
        return self.quantized.running(inputs)
