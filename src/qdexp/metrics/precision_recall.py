"""Precision and recall of features (Kynkaanniemi et al., arXiv 1904.06991), by torch-fidelity.

    precision = share of samples inside the union of the real features' balls
    recall    = share of real features inside the union of the samples' balls

where a feature's ball reaches to its third nearest neighbour.
"""

from dataclasses import dataclass
from typing import ClassVar

from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from qdexp.metrics.features import Features
from qdexp.metrics.reference import Reference
from qdexp.metrics.scores import Score
from qdexp.numbers import Number


@dataclass(frozen=True, kw_only=True)
class PrecisionRecall(Score):
    """Precision and recall of the first min(n, m) of n samples and m reference features, since the balls shrink as the sets
    grow; nothing where the reference has no features."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "precision",
            "precision",
            shown=(),
            digits=3,
            higher=True,
            meaning="Share of the samples that lie among the real images, by their features.",
        ),
        Number(
            "recall",
            "recall",
            shown=(),
            digits=3,
            higher=True,
            meaning="Share of the real images that lie among the samples, by their features.",
        ),
    )

    def score(self, features: Features, reference: Reference) -> dict[str, float]:
        if reference.features is None:
            return {}
        pool, real = features.pool.double(), reference.features.double()
        n = min(len(pool), len(real))
        found = prc_features_to_metric(pool[:n], real[:n], save_cpu_ram=True, verbose=False)
        return {"precision": found[KEY_METRIC_PRECISION], "recall": found[KEY_METRIC_RECALL]}
