"""The Fréchet distance between the Gaussians of features: FID, and sFID of spatial features.

With N(m, S) that of the samples' features and N(mu, Sigma) that of the reference's:

    FID  = |m - mu|^2 + tr(S + Sigma - 2 (S Sigma)^(1/2))     Heusel et al., arXiv 1706.08500, eq. 6
    sFID = the same of spatial features                       Nash et al., arXiv 2103.03841

FID is biased upwards, more so the smaller n is: read it against ``floor``. The values are torch-fidelity's, to the last digit;
the replicates of their intervals are ours (``qdexp.statistics.frechet``).
"""

from dataclasses import dataclass
from typing import ClassVar

from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric

from qdexp.metrics.base import Result
from qdexp.metrics.features import Features
from qdexp.metrics.reference import Reference
from qdexp.metrics.scores import Score
from qdexp.numbers import Number
from qdexp.statistics.estimate import Estimate
from qdexp.statistics.frechet import Frechet


@dataclass(frozen=True, kw_only=True)
class Fid(Score):
    """FID; sFID too where extractor and reference have spatial features."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "fid",
            "FID",
            shown=("overview", "brief", "bars"),
            differences=True,
            meaning="Fréchet distance between features of samples and of real images, higher where images are few.",
        ),
        Number(
            "sfid",
            "sFID",
            shown=(),
            meaning="FID of spatial features, which tell where in the image things are.",
        ),
    )

    def score(self, features: Features, reference: Reference) -> dict[str, Result]:
        found: dict[str, Result] = {"fid": estimate(features.pool, reference)}
        if features.spatial is not None and reference.mu_s is not None and reference.sigma_s is not None:
            found["sfid"] = _frechet(features.spatial, reference.mu_s, reference.sigma_s)
        return found


def estimate(pool: Tensor, reference: Reference) -> Estimate:
    """``fid`` with its jackknife replicates."""
    replicates = Frechet(reference.mu.numpy(), reference.sigma.numpy()).fid(pool.numpy()).replicates
    return Estimate(fid(pool, reference), replicates)


def fid(pool: Tensor, reference: Reference) -> float:
    """Fréchet distance between the Gaussians of ``pool`` [n, d] and of ``reference``."""
    return _frechet(pool, reference.mu, reference.sigma)


def floor(reference: Reference, n: int) -> float | None:
    """FID of the first ``n`` held-out real images: what a perfect model scores. None if the reference has not so many."""
    if reference.floor_features is None or len(reference.floor_features) < n:
        return None
    return fid(reference.floor_features[:n], reference)


def _frechet(pool: Tensor, mu: Tensor, sigma: Tensor) -> float:
    real = {"mu": mu.numpy(), "sigma": sigma.numpy()}
    return float(fid_statistics_to_metric(fid_features_to_statistics(pool.double()), real, verbose=False)[KEY_METRIC_FID])
