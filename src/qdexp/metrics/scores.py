"""Distributional metrics of samples against a reference, from stored features, in float64.

With N(m, S) the Gaussian of the samples' features and N(mu, Sigma) that of the reference's:

    FID       = |m - mu|^2 + tr(S + Sigma - 2 (S Sigma)^(1/2))                 Heusel et al., arXiv 1706.08500, eq. 6
    sFID      = the same of spatial features                                   Nash et al., arXiv 2103.03841
    IS        = exp E_x KL(p(y|x) || p(y))                                     Salimans et al., arXiv 1606.03498
    KID       = unbiased MMD^2 under the kernel (x.y / d + 1)^3                Binkowski et al., arXiv 1801.01401
    precision = share of samples inside the union of the real features' balls  Kynkaanniemi et al., arXiv 1904.06991
    recall    = share of real features inside the union of the samples' balls

where a feature's ball reaches to its third nearest neighbour. FID is biased upwards, more so the smaller n is: compare only
numbers of equal n, and read them against ``floor``. torch-fidelity's own functions compute all of it but KID, which is taken
over all pairs (``qdexp.statistics.kernel``); the mean over random subsets is ``kid_subsets``. sFID is FID of other features.
"""

import numpy as np
from numpy.typing import NDArray
from torch import Tensor
from torch_fidelity.metric_fid import KEY_METRIC_FID, fid_features_to_statistics, fid_statistics_to_metric
from torch_fidelity.metric_isc import KEY_METRIC_ISC_MEAN, KEY_METRIC_ISC_STD, isc_features_to_metric
from torch_fidelity.metric_kid import KEY_METRIC_KID_MEAN, KEY_METRIC_KID_STD, kid_features_to_metric
from torch_fidelity.metric_prc import KEY_METRIC_PRECISION, KEY_METRIC_RECALL, prc_features_to_metric

from qdexp.errors import UserError
from qdexp.metrics.features import Features
from qdexp.metrics.reference import Reference
from qdexp.statistics.estimate import Estimate
from qdexp.statistics.frechet import Frechet
from qdexp.statistics.kernel import Kernel

IS_SPLITS = 10
KID_SUBSETS = 100
KID_LEAST = 1000  # samples
KID_LARGEST_SUBSET = 1000


def score(features: Features, reference: Reference, seed: int) -> dict[str, float]:
    """``fid``, ``isc``, ``isc_std`` always; ``sfid`` if both have spatial features; ``kid_subsets``, ``kid_subsets_std``,
    ``precision``, ``recall`` if ``reference`` has features.

    The keys of KID are absent too when there are fewer than 1,000 samples or reference features: its subsets (n/2 rows, at most
    1,000) would be so small that their spread hides the value. ``isc_std`` and ``kid_subsets_std`` are standard deviations
    over 10 disjoint splits and 100 overlapping subsets, both drawn from ``seed`` (0 <= seed < 2^32): spreads, not errors of the
    mean. Precision and recall use the first min(n, m) of n samples and m reference features, since their balls shrink as the
    sets grow. UserError for fewer than 10 samples, which leave splits of the Inception score empty.
    """
    n = len(features.pool)
    if n < IS_SPLITS:
        raise UserError(f"protocol.n={n} is too small to score; use at least {IS_SPLITS}")
    pool = features.pool.double()
    isc = isc_features_to_metric(features.logits, splits=IS_SPLITS, shuffle=True, rng_seed=seed)
    scores = {"fid": fid(pool, reference), "isc": isc[KEY_METRIC_ISC_MEAN], "isc_std": isc[KEY_METRIC_ISC_STD]}
    if features.spatial is not None and reference.mu_s is not None and reference.sigma_s is not None:
        scores["sfid"] = _frechet(features.spatial, reference.mu_s, reference.sigma_s)
    if reference.features is not None:
        real = reference.features.double()
        scores |= _kid_subsets(pool, real, seed) | _precision_recall(pool, real)
    return scores


def estimates(pool: Tensor, reference: Reference) -> dict[str, Estimate]:
    """The scores that are told with an interval over the images, each with its jackknife replicates.

    Args:
        pool: Features of the images, [n, d].
        reference: What FID and KID are measured against.

    Returns:
        ``fid``; ``kid`` from 1,000 images and reference features on.
    """
    features: NDArray[np.float32] = pool.numpy()
    found = {"fid": Frechet(reference.mu.numpy(), reference.sigma.numpy()).fid(features)}
    if reference.features is not None and min(len(features), len(reference.features)) >= KID_LEAST:
        found["kid"] = Kernel(reference.features.numpy()).kid(features)
    return found


def fid(pool: Tensor, reference: Reference) -> float:
    """Fréchet distance between the Gaussians of ``pool`` [n, d] and of ``reference``."""
    return _frechet(pool, reference.mu, reference.sigma)


def _frechet(pool: Tensor, mu: Tensor, sigma: Tensor) -> float:
    real = {"mu": mu.numpy(), "sigma": sigma.numpy()}
    return fid_statistics_to_metric(fid_features_to_statistics(pool.double()), real, verbose=False)[KEY_METRIC_FID]


def floor(reference: Reference, n: int) -> float | None:
    """FID of the first ``n`` held-out real images: what a perfect model scores. None if the reference has not so many."""
    if reference.floor_features is None or len(reference.floor_features) < n:
        return None
    return fid(reference.floor_features[:n], reference)


def _kid_subsets(pool: Tensor, real: Tensor, seed: int) -> dict[str, float]:
    n = min(len(pool), len(real))
    if n < KID_LEAST:
        return {}
    size = min(n // 2, KID_LARGEST_SUBSET)
    kid = kid_features_to_metric(pool, real, kid_subsets=KID_SUBSETS, kid_subset_size=size, rng_seed=seed, verbose=False)
    return {"kid_subsets": kid[KEY_METRIC_KID_MEAN], "kid_subsets_std": kid[KEY_METRIC_KID_STD]}


def _precision_recall(pool: Tensor, real: Tensor) -> dict[str, float]:
    n = min(len(pool), len(real))
    prc = prc_features_to_metric(pool[:n], real[:n], save_cpu_ram=True, verbose=False)
    return {"precision": prc[KEY_METRIC_PRECISION], "recall": prc[KEY_METRIC_RECALL]}
