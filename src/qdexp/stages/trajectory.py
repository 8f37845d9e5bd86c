"""The full-precision network's own walks from noise to image, recorded at every step."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from qdexp import models
from qdexp.config import Config
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import Recording, Stream, missing_shards, write_shards
from qdexp.stages.base import Sharded, Stage, network_options, sampler_options
from qdexp.stages.conditions import condition_inputs, read_conditions


class TrajectoryStage(Sharded, Stage):
    """Shards of ``x_t`` and (guided) ``eps``, float32 [rows, calls, c, h, w], of one noise stream."""

    name = "trajectory"
    version = 2
    sources = ("qdexp.stages.trajectory", "qdexp.sampling", "qdexp.models")

    def __init__(self, config: Config, stream: str, seed: int, n: int) -> None:
        super().__init__(config)
        self.stream = Stream(stream, seed, n, config.sampling.batch)
        self.shards = self.stream.shards

    @property
    def inputs(self) -> dict[str, Stage]:
        return condition_inputs(self.config, self.stream)

    @property
    def options(self) -> dict[str, Any]:
        noise = {"stream": self.stream.name, "seed": self.stream.seed, "n": self.stream.n}
        return {"noise": noise, **network_options(self.config), **sampler_options(self.config)}

    @property
    def files(self) -> dict[str, Path]:
        return models.files(self.config.model)

    def draw(self, folder: Path, inputs: dict[str, Path], shards: Sequence[int]) -> None:
        network = models.build(self.config.model, self.config.sampling.channels_last)
        sampler = Sampler(self.config.model, self.config.protocol)
        conditions = read_conditions(inputs, self.config)
        write_shards(Recording(network, sampler, self.stream, conditions), folder, self.device, shards)

    def missing(self, folder: Path) -> list[int]:
        return missing_shards(self.stream, folder)


def calibration_trajectory(config: Config) -> TrajectoryStage:
    """The one that every calibration strategy draws from."""
    return TrajectoryStage(config, "calibration", config.seed, config.trajectory.samples)


def heldout_trajectory(config: Config) -> TrajectoryStage:
    """The one on which errors are measured: the first samples of the evaluation."""
    return TrajectoryStage(config, "evaluation", config.protocol.noise_seed, config.protocol.heldout)
