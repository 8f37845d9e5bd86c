"""The full-precision network's own trajectories from noise to image, recorded at every step."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from qdexp import device as devices
from qdexp import models
from qdexp.config import Config, Model, SamplerOptions, Sampling
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import Recording, Stream, missing_shards, write_shards
from qdexp.stages.base import Sharded, Stage
from qdexp.stages.conditions import ConditionsStage, conditions_of, read_conditions


@dataclass(frozen=True, eq=False, kw_only=True)
class TrajectoryStage(Sharded, Stage):
    """Shards of ``x_t`` and (guided) ``eps``, float32 [rows, calls, c, h, w], of one noise stream."""

    name = "trajectory"

    model: Model
    files: Mapping[str, Path]
    sampling: Sampling
    sampler: SamplerOptions
    stream: Stream
    conditions: ConditionsStage | None

    @classmethod
    def of(cls, config: Config, stream: Stream) -> "TrajectoryStage":
        return cls(
            device=devices.resolve(config.device),
            model=config.model.bare,
            files=models.files(config.model),
            sampling=config.sampling,
            sampler=config.protocol.sampler,
            stream=stream,
            conditions=conditions_of(config, stream),
        )

    @property
    def shards(self) -> range:
        return self.stream.shards

    def draw(self, folder: Path, inputs: dict[str, Path], shards: Sequence[int]) -> None:
        network = models.build(self.model, self.sampling.channels_last)
        sampler, conditions = Sampler(self.model, self.sampler), read_conditions(inputs, self.sampler.guidance)
        write_shards(Recording(network, sampler, self.stream, conditions), folder, self.device, shards)

    def missing(self, folder: Path) -> list[int]:
        return missing_shards(self.stream, folder)


def calibration_trajectory(config: Config) -> TrajectoryStage:
    """The one that every calibration strategy draws from."""
    return TrajectoryStage.of(config, Stream("calibration", config.seed, config.trajectory.samples, config.sampling.batch))


def heldout_trajectory(config: Config) -> TrajectoryStage:
    """The one on which errors are measured: the first samples of the evaluation."""
    protocol = config.protocol
    return TrajectoryStage.of(config, Stream("evaluation", protocol.noise_seed, protocol.heldout, config.sampling.batch))
