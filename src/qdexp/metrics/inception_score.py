"""The Inception score: how sure a classifier is of each image, and how many classes it sees.

    IS = exp E_x KL(p(y|x) || p(y))     Salimans et al., arXiv 1606.03498

by torch-fidelity, over 10 disjoint splits.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric

from qdexp.errors import UserError
from qdexp.metrics.base import Material
from qdexp.metrics.features import Features
from qdexp.metrics.scores import OfFeatures
from qdexp.numbers import Number

SPLITS = 10


@dataclass(frozen=True, kw_only=True)
class InceptionScore(OfFeatures):
    """Mean over the splits, which ``seed`` draws, and their standard deviation: a spread, not the error of the mean."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "isc",
            "IS",
            shown=("overview",),
            higher=True,
            meaning="Inception score: how sure a classifier is of each image, and how many classes it sees.",
        ),
        Number(
            "isc_std",
            "IS, deviation over splits",
            shown=(),
            meaning="Standard deviation of the Inception score over 10 splits: a spread, not the error of the mean.",
        ),
    )

    seed: Annotated[int, Ge(0)]

    def measure(self, material: Material) -> dict[str, float]:
        return self.score(material.features())

    def score(self, features: Features) -> dict[str, float]:
        """Nothing where the extractor has no logits. UserError for fewer than 10 images, which leave splits empty."""
        if features.logits is None:
            return {}
        if len(features.logits) < SPLITS:
            raise UserError(f"protocol.n={len(features.logits)} is too small to score; use at least {SPLITS}")
        found = isc_features_to_metric(features.logits, splits=SPLITS, shuffle=True, rng_seed=self.seed)
        return {"isc": found[KEY_METRIC_ISC_MEAN], "isc_std": found[KEY_METRIC_ISC_STD]}
