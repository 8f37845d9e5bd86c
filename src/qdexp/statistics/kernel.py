"""KID with its jackknife replicates, from stored features.

The unbiased estimate of MMD^2 over all pairs (Binkowski et al., arXiv 1801.01401, eq. 4), k(x, y) = (x.y / d + 1)^3:

    KID = sum_(i != j) k(x_i, x_j) / (n (n - 1)) + sum_(i != j) k(y_i, y_j) / (m (m - 1)) - 2 mean k(x_i, y_j)

Its expectation is that of torch-fidelity's mean over random subsets; without them there is no noise of their drawing.
"""

from typing import Any

import numpy as np
from numpy.typing import NDArray

from qdexp.statistics.estimate import Estimate, Floats, groups_of

ROWS = 10_000
"""Rows of either side at most: KID is unbiased at every n, and its cost grows with n^2."""
BLOCK = 1024


class Kernel:
    """Distances to one reference: ``real`` [m, d], of which the first 10,000 are used."""

    def __init__(self, real: NDArray[Any]) -> None:
        self.real = real[:ROWS].astype(np.float64)
        m = len(self.real)
        within = sum(float(_kernel(rows, self.real).sum()) for rows in _blocks(self.real))
        self.within = (within - float(_diagonal(self.real).sum())) / (m * (m - 1))

    def kid(self, features: NDArray[Any]) -> Estimate:
        """KID of the first 10,000 of ``features`` [n, d], n at least 3."""
        x = features[:ROWS].astype(np.float64)
        groups = groups_of(len(x))
        member = np.eye(int(groups.max()) + 1)[groups]
        pairs = member.T @ np.concatenate([_kernel(rows, x) @ member for rows in _blocks(x)])  # [G, G]
        own = member.T @ _diagonal(x)
        cross = member.T @ np.concatenate([_kernel(rows, self.real).mean(axis=1) for rows in _blocks(x)])
        counts = member.sum(axis=0)
        kept = len(x) - counts
        pairs_kept = pairs.sum() - 2 * pairs.sum(axis=1) + np.diag(pairs)
        value = self._distance(pairs.sum() - own.sum(), cross.sum(), np.float64(len(x)))
        return Estimate(float(value), self._distance(pairs_kept - own.sum() + own, cross.sum() - cross, kept))

    def _distance(self, pairs: Any, cross: Any, n: Any) -> Any:
        return pairs / (n * (n - 1)) + self.within - 2 * cross / n


def _kernel(a: Floats, b: Floats) -> Floats:
    """k of every row of ``a`` [n, d] with every row of ``b`` [m, d]: [n, m]."""
    k: Floats = (a @ b.T / a.shape[1] + 1) ** 3
    return k


def _diagonal(a: Floats) -> Floats:
    """k of every row with itself: [n]."""
    k: Floats = ((a**2).mean(axis=1) + 1) ** 3
    return k


def _blocks(rows: Floats) -> list[Floats]:
    return np.array_split(rows, -(-len(rows) // BLOCK))
