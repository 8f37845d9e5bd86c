"""The cost of a network: bytes, as papers print them and as they are stored, and bit operations of one image and step."""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

from qdexp.config import Config
from qdexp.metrics.base import COVERAGE, NETWORK, SIZE, Material, Metric
from qdexp.models import checkpoint
from qdexp.numbers import Number


@dataclass(frozen=True, kw_only=True)
class Size(Metric):
    """Sizes in 10^6 bytes; 10^9 multiplications x the bits of both factors, where these could be counted."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "size_nominal_mb",
            "nominal MB",
            kind="cost",
            shown=(),
            meaning="10^6 bytes as papers count them: parameters x bits / 8.",
        ),
        Number(
            "size_stored_mb",
            "stored MB",
            kind="cost",
            shown=("overview", "brief", "alone"),
            meaning="10^6 bytes of the checkpoint as it lies on the disk, its scales included.",
        ),
        Number(
            "gbops",
            "GBOPs",
            kind="cost",
            shown=("overview",),
            digits=1,
            axis="GBOPs: 10^9 MACs x bits of both factors",
            meaning="Bit operations of one image and step: 10^9 multiply-accumulates x the bits of both factors.",
        ),
    )

    def needs_of(self, config: Config) -> Collection[str]:
        return {SIZE} if config.full_precision else {NETWORK, COVERAGE}

    def measure(self, material: Material) -> dict[str, float]:
        if SIZE in material.folders:
            return dict(material.read(SIZE))
        found = material.read(COVERAGE)
        return {
            "size_nominal_mb": found["nominal_bytes"] / 1e6,
            "size_stored_mb": checkpoint.size_bytes(material.folders[NETWORK] / checkpoint.FOLDER) / 1e6,
            "gbops": found["bit_operations"] / 1e9,
        }
