"""The error of the noise estimate: the mean over the sampler's calls of the teacher-forced relative squared error."""

from dataclasses import dataclass
from typing import ClassVar

from qdexp.metrics.base import CURVES, Material, Metric
from qdexp.numbers import Number


@dataclass(frozen=True, kw_only=True)
class NoiseError(Metric):
    """From what the stage ``curves`` measures on held-out trajectories."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "noise_error",
            "noise error x1000",
            kind="fidelity",
            shown=("overview", "brief", "alone", "bars"),
            factor=1000.0,
            digits=3,
            significant=True,
        ),
    )
    needs: ClassVar[frozenset[str]] = frozenset({CURVES})

    def measure(self, material: Material) -> dict[str, float]:
        forced = material.read(CURVES)["teacher_forced"]
        return {"noise_error": sum(forced) / len(forced)}
