"""The share of what the bits ask for that is really quantized."""

from dataclasses import dataclass
from typing import ClassVar

from qdexp.metrics.base import COVERAGE as MEASURED
from qdexp.metrics.base import Material, Metric
from qdexp.numbers import Number


@dataclass(frozen=True, kw_only=True)
class Coverage(Metric):
    """The quantized share of the multiplications and of the parameters that the bits ask for."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "coverage_macs",
            "quantized MACs, %",
            kind="share",
            shown=("overview",),
            factor=100.0,
            digits=1,
            higher=True,
            meaning="Of the multiplications that the bits ask for, the share that is quantized.",
        ),
        Number(
            "coverage_parameters",
            "quantized parameters, %",
            kind="share",
            shown=("overview",),
            factor=100.0,
            digits=1,
            higher=True,
            meaning="Of the parameters that the bits ask for, the share that is quantized.",
        ),
    )
    needs: ClassVar[frozenset[str]] = frozenset({MEASURED})

    def measure(self, material: Material) -> dict[str, float]:
        return {f"coverage_{what}": share for what, share in material.read(MEASURED)["quantized"].items()}
