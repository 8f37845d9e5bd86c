"""The error of the noise prediction: the mean over the sampler's steps of the teacher-forced relative squared error.

A step at t = 0, which DDIM ends with, does not count. There x_t is the image with noise of the deviation 0.01 (of the usual
schedule): rounding x_t alone to 8 bits is of that size, so that the error is one of the input, a hundred times that of other
steps and much the same whatever a method does; and only 0.01 of the noise prediction is taken from x_t. The curves have it.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

from qdexp.config import Config
from qdexp.metrics.base import CURVES, Material, Metric
from qdexp.numbers import Number
from qdexp.sampling.sampler import timesteps_of


@dataclass(frozen=True, kw_only=True)
class NoiseError(Metric):
    """The noise error, from what the stage ``curves`` measures on held-out trajectories."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "noise_error",
            "noise error x1000",
            kind="fidelity",
            shown=("overview", "brief", "alone", "bars"),
            factor=1000.0,
            digits=3,
            significant=True,
            meaning="|eps_q - eps|^2 / |eps|^2 on trajectories of full precision, the mean over the sampler's steps.",
        ),
    )
    needs: ClassVar[frozenset[str]] = frozenset({CURVES})

    def identity(self, config: Config) -> dict[str, str]:
        """The steps that are left out, where any are."""
        timesteps = timesteps_of(config.model, config.protocol)
        counted = len(_counted(timesteps))
        return {} if counted == len(timesteps) else {"mean over": f"{counted} of {len(timesteps)} steps, without t = 0"}

    def measure(self, material: Material) -> dict[str, float]:
        curves = material.read(CURVES)
        errors = [curves["teacher_forced"][step] for step in _counted(curves["timestep"])]
        return {"noise_error": sum(errors) / len(errors)}


def _counted(timesteps: Sequence[float]) -> list[int]:
    """The positions of the steps that count: those at t > 0, where there are any."""
    return [step for step, t in enumerate(timesteps) if t > 0] or list(range(len(timesteps)))
