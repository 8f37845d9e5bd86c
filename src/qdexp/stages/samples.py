"""The images of the evaluation: the same noise in every cell, through the full-precision or the quantized network."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from qdexp import models
from qdexp.config import RANDOM, Config
from qdexp.quant import checkpoint
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import Sampling, Stream, missing_shards, read_shards, write_shards
from qdexp.stages.base import Sharded, Stage, identity, network_options, sampler_options
from qdexp.stages.conditions import condition_inputs, read_conditions
from qdexp.stages.conversion import CHECKPOINT
from qdexp.stages.quantization import QuantizationStage


class SamplesStage(Sharded, Stage):
    """Shards of ``images``, uint8 [rows, c, h, w]. ``quantized`` says which network draws them."""

    name = "samples"
    version = 2
    sources = ("qdexp.stages.samples", "qdexp.sampling", "qdexp.models", "qdexp.quant")

    def __init__(self, config: Config, quantized: bool) -> None:
        super().__init__(config)
        self.quantized = quantized
        protocol = config.protocol
        self.stream = Stream("evaluation", protocol.noise_seed, protocol.n, config.sampling.batch)
        self.shards = self.stream.shards

    @property
    def inputs(self) -> dict[str, Stage]:
        quantized = {"quantization": QuantizationStage(self.config)} if self.quantized else {}
        return {**quantized, **condition_inputs(self.config, self.stream)}

    @property
    def options(self) -> dict[str, Any]:
        noise = {"seed": self.stream.seed, "n": self.stream.n}
        return {"noise": noise, **decoder_options(self.config), **network_options(self.config), **sampler_options(self.config)}

    @property
    def files(self) -> dict[str, Path]:
        network = {} if self.quantized else models.files(self.config.model)
        return network | {f"first_stage.{role}": path for role, path in models.first_stage_files(self.config.model).items()}

    def draw(self, folder: Path, inputs: dict[str, Path], shards: Sequence[int]) -> None:
        if self.quantized:
            network = checkpoint.load(inputs["quantization"] / CHECKPOINT)
        else:
            network = models.build(self.config.model, self.config.sampling.channels_last)
        sampler = Sampler(self.config.model, self.config.protocol)
        conditions, first_stage = read_conditions(inputs, self.config), models.first_stage(self.config.model)
        write_shards(Sampling(network, sampler, self.stream, conditions, first_stage), folder, self.device, shards)

    def missing(self, folder: Path) -> list[int]:
        return missing_shards(self.stream, folder)


def decoder_options(config: Config) -> dict[str, Any]:
    """What defines the first stage, if there is one; weights come in as a file, unless they are random."""
    stage = config.model.first_stage
    if stage is None:
        return {}
    drawn = {"weights": RANDOM} if stage.weights == RANDOM else {}
    return {"first_stage": {"network": identity(stage.network), "scale": stage.scale, "shift": stage.shift, **drawn}}


def image_inputs(config: Config, quantized: bool = True) -> dict[str, Stage]:
    """The inputs of a stage that compares a cell's images with the full-precision ones of the same noise."""
    return {"samples": SamplesStage(config, quantized), "full_precision": SamplesStage(config, quantized=False)}


def image_pairs(inputs: dict[str, Path]) -> Iterator[tuple[Tensor, Tensor]]:
    """Both images of every noise, uint8 [rows, c, h, w] each, shard by shard: all at once may not fit in memory."""
    return zip(*(read_shards(inputs[role], "images") for role in ("samples", "full_precision")), strict=True)
