"""Scores: distributional metrics of the images' features against the protocol's reference, in float64.

Each has a module of its own with its formula. All are biased by n or moved by it: compare only numbers of equal n.
"""

from abc import abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import ClassVar

from qdexp.config import RANDOM, Config
from qdexp.entries import digest
from qdexp.metrics.base import Material, Metric, Result
from qdexp.metrics.extractor import Extractor
from qdexp.metrics.extractors import find
from qdexp.metrics.features import Features
from qdexp.metrics.reference import Reference


@lru_cache(maxsize=1)
def _reference(path: Path, _: str) -> Reference:
    """Loaded once for all metrics that compare with it, as long as its content is the same, whose digest is the second."""
    return Reference.load(path)


@dataclass(frozen=True, kw_only=True)
class OfFeatures(Metric):
    """One that reads the features of ``protocol.extractor``; none where there is no such."""

    needs: ClassVar[frozenset[str]] = frozenset()  # but the features

    def applies(self, config: Config) -> bool:
        return config.protocol.scores

    def extractor(self, config: Config) -> Extractor:
        return find(config.protocol.extractor, config.protocol.extractor_weights)


@dataclass(frozen=True, kw_only=True)
class Score(OfFeatures):
    """One that compares them with ``protocol.reference``."""

    @abstractmethod
    def score(self, features: Features, reference: Reference) -> Mapping[str, Result]:
        """The numbers, of features of n images."""

    def measure(self, material: Material) -> Mapping[str, Result]:
        path = material.files.get("reference")
        return self.score(material.features(), _reference(path or Path(RANDOM), digest(path) if path else ""))

    def files(self, config: Config) -> dict[str, Path]:
        reference = config.protocol.reference
        return {} if reference == RANDOM else {"reference": Path(reference)}
