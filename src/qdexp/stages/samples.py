"""The images of the evaluation: the same noise in every cell, through the full-precision network here."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch

from qdexp import device as devices
from qdexp import models
from qdexp.config import Config, Model, SamplerOptions, Sampling
from qdexp.sampling import shards as sharding
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import Stream, missing_shards, write_shards
from qdexp.stages.base import Results, Sharded, Stage
from qdexp.stages.conditions import ConditionsStage, conditions_of, read_conditions


@dataclass(frozen=True, eq=False, kw_only=True)
class SamplesStage(Sharded, Stage):
    """Shards of ``images``, uint8 [rows, c, h, w]."""

    name = "samples"

    model: Model
    files: Mapping[str, Path]
    sampling: Sampling
    sampler: SamplerOptions
    pixels: str
    stream: Stream
    conditions: ConditionsStage | None

    @classmethod
    def of(cls, config: Config) -> "SamplesStage":
        stream = noise_stream(config)
        return cls(
            device=devices.resolve(config.device),
            model=replace(config.model, condition=None),
            files=models.files(config.model) | first_stage_files(config.model),
            sampling=config.sampling,
            sampler=config.protocol.sampler,
            pixels=config.protocol.pixels,
            stream=stream,
            conditions=conditions_of(config, stream),
        )

    @property
    def shards(self) -> range:
        return self.stream.shards

    def network(self, inputs: dict[str, Path]) -> torch.nn.Module:
        """The network that predicts the noise."""
        return models.build(self.model, self.sampling.channels_last)

    def draw(self, folder: Path, inputs: dict[str, Path], shards: Sequence[int]) -> None:
        sampler, conditions = Sampler(self.model, self.sampler), read_conditions(inputs, self.sampler.guidance)
        first_stage = models.first_stage(self.model)
        module = sharding.Sampling(self.network(inputs), sampler, self.stream, conditions, first_stage, self.pixels)
        write_shards(module, folder, self.device, shards)

    def results(self, folder: Path) -> Results:
        return {"artifacts": {"samples": folder}}

    def missing(self, folder: Path) -> list[int]:
        return missing_shards(self.stream, folder)


def noise_stream(config: Config) -> Stream:
    """The noise of the images."""
    return Stream("evaluation", config.protocol.noise_seed, config.protocol.n, config.sampling.batch)


def first_stage_files(model: Model) -> dict[str, Path]:
    """The files of the first stage, which makes images of latents."""
    return {f"first_stage.{role}": path for role, path in models.first_stage_files(model).items()}
