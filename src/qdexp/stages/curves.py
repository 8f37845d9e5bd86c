"""The error of the quantized network at every call of the sampler, on held-out trajectories; eps is the guided one.

Teacher-forced: both networks see the full-precision x_t, so the error is the step's own,
    sum |eps_q(x_t, t) - eps(x_t, t)|^2 / sum |eps(x_t, t)|^2.
Free-running: the quantized network samples alone from the same noise, so errors accumulate,
    sum |x_t^q - x_t|^2 / sum |x_t|^2.
"""

import json
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from qdexp import files
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.shards import Recording, on_host, read_shards
from qdexp.stages.base import Results, Stage
from qdexp.stages.conditions import ConditionsStage, read_conditions
from qdexp.stages.quantized import Quantized
from qdexp.stages.trajectory import TrajectoryStage

FILE = "curves.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class CurvesStage(Stage):
    """``curves.json``: ``timestep``, ``teacher_forced`` and ``free_running``, one value a call, first call first."""

    name = "curves"

    quantized: Quantized
    trajectory: TrajectoryStage
    conditions: ConditionsStage | None

    @classmethod
    def of(cls, quantized: Quantized, heldout: TrajectoryStage) -> "CurvesStage":
        return cls(device=heldout.device, quantized=quantized, trajectory=heldout, conditions=heldout.conditions)

    @torch.inference_mode()
    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        heldout, network = self.trajectory, self.quantized.running(inputs)
        sampler, conditions = Sampler(heldout.model, heldout.sampler), read_conditions(inputs, heldout.sampler.guidance)
        walk = Recording(network, sampler, heldout.stream, conditions).to(self.device)
        timesteps = torch.tensor(sampler.timesteps, device=self.device)
        forced, free = _Ratio(sampler.steps), _Ratio(sampler.steps)
        shards = zip(read_shards(inputs["trajectory"], "x_t"), read_shards(inputs["trajectory"], "eps"), strict=True)
        for shard, (x_t, eps) in enumerate(shards):
            asked = conditions.of(heldout.stream.samples(shard)[: len(x_t)], self.device)
            answers = on_host([sampler.steps, *x_t[:, 0].shape], self.device)
            for answer, x, t in zip(answers, x_t.unbind(1), timesteps, strict=True):
                answer.copy_(asked.estimate(network, x.to(self.device), t.expand(len(x))), non_blocking=True)
            free.add(walk(shard)["x_t"][: len(x_t)], x_t)  # it waits for the device: the answers are there
            forced.add(answers.transpose(0, 1), eps)
        curves = {"timestep": sampler.timesteps, "teacher_forced": forced.values(), "free_running": free.values()}
        files.write_text(folder / FILE, json.dumps(curves))

    def results(self, folder: Path) -> Results:
        return {"curves": json.loads((folder / FILE).read_text())}


class _Ratio:
    """sum |a - b|^2 / sum |b|^2 for each step, over all rows that were added ([rows, steps, ...])."""

    def __init__(self, steps: int) -> None:
        self.error, self.power = torch.zeros(steps, dtype=torch.float64), torch.zeros(steps, dtype=torch.float64)

    def add(self, value: Tensor, truth: Tensor) -> None:
        rest = [dim for dim in range(truth.ndim) if dim != 1]
        self.error += (value - truth).double().square().sum(rest)
        self.power += truth.double().square().sum(rest)

    def values(self) -> list[float]:
        return (self.error / self.power).tolist()
