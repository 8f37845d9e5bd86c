"""The kernel distance of features: unbiased MMD^2 under the kernel (x.y / d + 1)^3 (Binkowski et al., arXiv 1801.01401).

``kid`` is taken over all pairs (``qdexp.statistics.kernel``), ``kid_subsets`` is torch-fidelity's mean over random subsets.
"""

from dataclasses import dataclass
from typing import Annotated, ClassVar

from annotated_types import Ge
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric

from qdexp.metrics.base import Result
from qdexp.metrics.features import Features
from qdexp.metrics.reference import Reference
from qdexp.metrics.scores import Score
from qdexp.numbers import Number
from qdexp.statistics.kernel import Kernel

SUBSETS, LARGEST_SUBSET = 100, 1000
LEAST = 1000
"""Images and reference features: of fewer, subsets (half of them) would be so small that their spread hides the value."""


@dataclass(frozen=True, kw_only=True)
class Kid(Score):
    """KID from 1,000 images and reference features on; nothing below.

    ``kid_subsets_std`` is the standard deviation over 100 overlapping subsets, which ``seed`` draws: a spread, not an error.
    """

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "kid",
            "KID x1000",
            factor=1000.0,
            differences=True,
            meaning="Kernel distance (unbiased MMD^2) between features of samples and of real images, over all pairs.",
        ),
        Number(
            "kid_subsets",
            "KID over subsets x1000",
            factor=1000.0,
            shown=(),
            meaning="torch-fidelity's KID: the mean over random subsets.",
        ),
        Number(
            "kid_subsets_std",
            "KID x1000, deviation over subsets",
            factor=1000.0,
            shown=(),
            meaning="Standard deviation of KID over overlapping subsets: a spread, not the error of the mean.",
        ),
    )

    seed: Annotated[int, Ge(0)]

    def score(self, features: Features, reference: Reference) -> dict[str, Result]:
        real = reference.features
        n = 0 if real is None else min(len(features.pool), len(real))
        if real is None or n < LEAST:
            return {}
        size = min(n // 2, LARGEST_SUBSET)
        drawn = kid_features_to_metric(
            features.pool.double(),
            real.double(),
            kid_subsets=SUBSETS,
            kid_subset_size=size,
            rng_seed=self.seed,
            verbose=False,
        )
        return {
            "kid": Kernel(real.numpy()).kid(features.pool.numpy()),
            "kid_subsets": drawn[KEY_METRIC_KID_MEAN],
            "kid_subsets_std": drawn[KEY_METRIC_KID_STD],
        }
