"""One step of a method as a stage: it reads the network that the step before left, and keeps its own as a packed checkpoint."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from qdexp import device as devices
from qdexp import models
from qdexp.config import NAMES_CODE, RANDOM, WITHOUT_EFFECT, Config, Memory, Model, Quant, Sampling
from qdexp.errors import UserError
from qdexp.methods.base import NamedStep, Step, Work
from qdexp.models import checkpoint
from qdexp.models.architecture import named
from qdexp.models.conditions import example_row, has_example
from qdexp.quant.blocks import Batch, call, first_row, outputs
from qdexp.recon import result
from qdexp.stages.base import Results, Stage
from qdexp.stages.calibration import CalibrationStage, read_batches

if TYPE_CHECKING:  # all methods are behind it, and would be behind each other's results
    from qdexp.methods.recipe import NamedStep

SAME = 0.01
"""Relative difference of what a network computes before and after it is saved: on a CPU there is none."""


@dataclass(frozen=True, eq=False, kw_only=True)
class StepStage(Stage):
    """``checkpoint/``: what ``qdexp.load`` reads, packed; ``blocks.json`` where something was learned block by block.

    Attributes:
        slot: What the step is called.
        memory: Where its rows may lie.
        target: The class of the step, which counts with its code.
        files: Those that the network or the step is made from.
        quant: The bits and grids that the step depends on.
        calibration: None where it reads no rows.
        before: The step before; None for the first one.
        last: Whether the network is quantized then: whoever reads it waits for a job of its own.
    """

    slot: str = field(metadata=WITHOUT_EFFECT)
    target: str = field(metadata=NAMES_CODE)
    step: Step
    model: Model
    files: Mapping[str, Path]
    sampling: Sampling
    quant: Quant
    seed: int
    calibration: CalibrationStage | None
    before: "StepStage | None"
    memory: Memory = field(default_factory=Memory, metadata=WITHOUT_EFFECT)
    last: bool = field(default=False, metadata=WITHOUT_EFFECT)

    @classmethod
    def of(cls, config: Config, one: NamedStep, before: "StepStage | None", last: bool) -> "StepStage":
        step = one.step
        reads_rows = step.calibrated or not has_example(config.model)
        own = models.files(config.model) if before is None and step.from_weights else {}
        try:
            read = step.files(config)
        except ValueError as error:
            raise UserError(f"{one.option}.{error}") from error
        return cls(
            device=devices.resolve(config.device),
            slot=one.slot,
            target=one.target,
            step=step,
            model=config.model.bare,
            files=own | read,
            sampling=config.sampling,
            quant=step.depends_on(config.quant),
            seed=config.seed,
            calibration=CalibrationStage.of(config) if reads_rows else None,
            before=before,
            memory=config.memory,
            last=last,
        )

    @property
    def name(self) -> str:
        return self.slot

    @property
    def quick(self) -> bool:
        return self.step.quick and not self.last

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        network = self._network(inputs)
        batches, least = [], 1
        if self.calibration is not None:
            batches = read_batches(inputs["calibration"], self.sampling.batch, self.device)
            least = self.calibration.calib.timesteps * self.calibration.trajectory.sampler.branches
        example = first_row(batches[0]) if batches else example_row(network, self.model)
        work = Work(
            network=network,
            quant=self.quant,
            model=self.model,
            example=example,
            batches=batches if self.step.calibrated else [],
            least=least,
            seed=self.seed,
            folder=folder,
            build=lambda: models.build(self.model, self.sampling.channels_last).to(self.device),
            memory=self.memory,
        )
        torch.manual_seed(self.seed)
        self.step.apply(work)
        keep(folder, network.to(self.device), self.model, example)

    def _network(self, inputs: dict[str, Path]) -> nn.Module:
        """The network as the step before left it."""
        if self.before is None:
            model = self.model if self.step.from_weights else replace(self.model, weights=RANDOM)
            return models.build(model, self.sampling.channels_last).to(self.device)
        return checkpoint.load(inputs["before"] / checkpoint.FOLDER, named(self.model.network)).to(self.device)

    def results(self, folder: Path) -> Results:
        learned = result.read(folder)
        found: Results = {"reconstruction": {} if learned is None else {self.slot: learned}}
        if self.last:
            found["artifacts"] = {"checkpoint": folder / checkpoint.FOLDER}
        return found


def keep(folder: Path, network: nn.Module, model: Model, example: Batch) -> None:
    """Writes a network as ``checkpoint/``; ``example``: a row for it. UserError where it computes something else once it is
    read again."""
    checkpoint.save(folder / checkpoint.FOLDER, network, model.network)
    again: Any = checkpoint.load(folder / checkpoint.FOLDER, named(model.network)).to(example[0].device)
    with torch.inference_mode():
        made, read = (torch.cat([part.flatten() for part in outputs(call(one, example))]).float() for one in (network, again))
    if (made - read).norm() > SAME * made.norm():
        raise UserError(f"model.network: {type(network).__name__} computes something else when it is read from its checkpoint: "
                        f"it keeps values that are neither parameters nor buffers; register these as buffers")  # fmt: skip
