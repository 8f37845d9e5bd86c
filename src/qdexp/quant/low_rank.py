"""The low-rank branch: what is hard to round of a weight, beside it in 16 bits.

    y = R_q Q_a(x) + U (V x),    R = W - U V,    U: [out, rank],  V: [rank, in, ...]

(SVDQuant, Li et al. 2024, arXiv 2411.05007, section 4). V is a layer of the kind that W is, with ``rank`` outputs, U a linear
one, or a convolution of size 1. The branch reads the input as it is before it is rounded, in the same coordinates.

U V starts as the best approximation of W, from its largest singular values; then in turn R is rounded, R_q, and U V becomes the
best approximation of what that leaves, W - R_q.
"""

from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdexp.quant.handing import Exact
from qdexp.quant.nearest import nearest
from qdexp.quant.scheme import Scheme

SMALL = 512
"""Rows or columns of a matrix whose singular vectors are all computed; of a larger one the first are looked for at random
(Halko et al. 2011, arXiv 0909.4061, algorithm 4.4)."""
BEYOND, POWERS = 8, 4
"""The number of singular vectors that are looked for beyond those wanted, and the number of powers of the matrix."""


class LowRank(Exact):
    """The branch of one layer: ``up`` and ``down`` are U and V. Their values are those of 16 bits, bfloat16; what is computed
    of them is not rounded."""

    _exact = ("up", "down")
    up: Tensor
    down: Tensor

    def __init__(self, up: Tensor, down: Tensor) -> None:
        super().__init__()
        for name, factor in (("up", up), ("down", down)):
            self.register_buffer(name, factor.to(torch.bfloat16).float(), persistent=False)

    @classmethod
    def empty(cls, weight: Tensor, rank: int) -> "LowRank":
        """Make an unfilled branch of this rank beside a weight."""
        return cls(weight.new_zeros(len(weight), rank), weight.new_zeros(rank, *weight.shape[1:]))

    @property
    def rank(self) -> int:
        return len(self.down)

    def product(self) -> Tensor:
        """U V, of the weight's shape, float32."""
        product = F.linear(self.up, self.down.flatten(1).mT)  # not @: an attention would take it for one of its own products
        return product.view(-1, *self.down.shape[1:])

    def forward(self, x: Tensor, layer: Any) -> Tensor:
        """The branch's output, for the input in the layer's coordinates."""
        narrow: Tensor
        up, down = self.up.to(x.dtype), self.down.to(x.dtype)
        if isinstance(layer, nn.Linear):
            return F.linear(F.linear(x, down), up)
        narrow = layer.kind._conv_forward(layer, x, down, None)
        convolve: Any = F.conv1d if narrow.ndim == 3 else F.conv2d
        widened: Tensor = convolve(narrow, up.view(*up.shape, *[1] * (narrow.ndim - 2)))
        return widened

    def kept(self) -> Tensor:
        """All numbers as a checkpoint has them, bfloat16 [length]."""
        return torch.cat([self.up.flatten(), self.down.flatten()]).to(torch.bfloat16)

    def fill(self, kept: Tensor) -> None:
        """The inverse of ``kept``."""
        for factor, values in zip((self.up, self.down), kept.split([self.up.numel(), self.down.numel()]), strict=True):
            factor.copy_(values.view_as(factor))

    @property
    def length(self) -> int:
        return self.up.numel() + self.down.numel()

    def extra_repr(self) -> str:
        return f"rank {self.rank}"


def largest_rank(weight: Tensor) -> int:
    """The rank with which U V is any matrix of the weight's shape."""
    return min(weight.flatten(1).shape)


def approximated(weight: Tensor, rank: int, seed: int) -> LowRank:
    """The branch whose product is nearest to a weight, of a rank that the weight can have: its projection on the first singular
    vectors of the shorter side. seed: of what is drawn."""
    matrix = weight.flatten(1).float()
    wide = matrix.shape[0] <= matrix.shape[1]
    vectors = _singular(matrix if wide else matrix.mT, rank, seed)
    up, down = (vectors, vectors.mT @ matrix) if wide else (matrix @ vectors, vectors.mT)
    return LowRank(up, down.reshape(rank, *weight.shape[1:]))


def _singular(matrix: Tensor, rank: int, seed: int) -> Tensor:
    """The first left singular vectors of a matrix, no more rows than columns, [rows, rank]."""
    if len(matrix) <= max(SMALL, rank + BEYOND):
        exact = matrix.double()
        return torch.linalg.eigh(exact @ exact.mT).eigenvectors[:, -rank:].float()
    with torch.random.fork_rng(devices=[matrix.device] if matrix.is_cuda else []):
        torch.manual_seed(seed)
        return torch.svd_lowrank(matrix, rank + BEYOND, POWERS)[0][:, :rank]


def refined(weight: Tensor, scheme: Scheme, rank: int, rounds: int, seed: int) -> Iterator[LowRank]:
    """The branches of all rounds, each from what rounding leaves beside the one before. scheme: of the weight."""
    left = weight
    for _ in range(rounds):
        branch = approximated(left, rank, seed)
        yield branch
        left = weight - nearest(weight - branch.product(), scheme)
