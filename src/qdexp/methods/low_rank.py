"""Low-rank branches, as a step: what is hard to round of each weight runs beside it in 16 bits."""

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import torch
from annotated_types import Gt
from torch import Tensor, nn

from qdexp.config import UNTOUCHED, WEIGHTS
from qdexp.config.checks import Positive
from qdexp.methods.base import BRANCHES, Work
from qdexp.methods.layerwise import LayerWise, run_all, watching
from qdexp.methods.weights import give_weights_grids
from qdexp.quant import low_rank
from qdexp.quant.layers import QuantizedLayer, arithmetic
from qdexp.quant.low_rank import largest_rank, refined
from qdexp.quant.nearest import nearest
from qdexp.quant.network import LayerBits

ROUND = 1.5
"""A round, its branches and what they leave of all outputs, in full-precision passes: measured on the embedded model."""


@dataclass(frozen=True, kw_only=True)
class LowRank(LayerWise):
    """Gives each layer whose weight is quantized a branch (SVDQuant, Li et al. 2024, arXiv 2411.05007). All bits of activations
    share it.

    Attributes:
        rank: The rank of the branch, or the largest one that the weight has, where that is less.
        rounds: How often the branch is found anew from what rounding to nearest leaves. The round with the least error of the
            layer's output is kept, for inputs in full precision.
        rows: The rows of the calibration set that the error is taken from (null: all), one of each timestep and guidance branch
            at least.
    """

    bits: ClassVar[frozenset[str]] = frozenset({WEIGHTS})
    quantizes: ClassVar[frozenset[str]] = frozenset({BRANCHES})

    rank: Positive = 32
    rounds: Positive = 10
    rows: Annotated[int, Gt(0)] | None = 64

    def fits(self, layer: nn.Module, bits: LayerBits) -> bool:
        return bits.weight != UNTOUCHED

    @torch.no_grad()
    def apply(self, work: Work) -> None:
        layers = self.layers(work)
        self.give_grids(work, layers)
        trials = {name: Trial(layer, self, work.seed_of(name)) for name, layer in layers.items()}
        if self.rounds > 1:
            with watching(layers, lambda name, x, _: trials[name].look(x)):
                run_all(work.network, work.first(self.rows))
        for name, layer in layers.items():
            layer.weight_scheme = None  # steps to come have grids of their own
            layer.branch = trials[name].best

    def give_grids(self, work: Work, layers: Iterable[str]) -> None:
        """Give the weights the grids that branches are judged by."""
        give_weights_grids(work.network, {name: work.plan[name] for name in layers}, work.quant)

    def passes(self, rows: int) -> float:
        own = rows if self.rows is None else min(rows, self.rows)
        return own * (1 + ROUND * self.rounds if self.rounds > 1 else 0)


class Trial:
    """The branches of all rounds beside one layer: what each leaves of the squared error of its output."""

    def __init__(self, layer: QuantizedLayer, step: LowRank, seed: int) -> None:
        assert layer.weight_scheme is not None
        self.layer, self.scheme = layer, layer.weight_scheme
        self.weight = layer.transformed_weight(layer.weight).float()
        rank = min(step.rank, largest_rank(self.weight))
        self.candidates = list(refined(self.weight, self.scheme, rank, step.rounds, seed))
        self.errors = torch.zeros(len(self.candidates), dtype=torch.float64, device=layer.weight.device)

    def look(self, x: Tensor) -> None:
        """Take in an input of the layer."""
        x = self.layer.transformed(x).float()
        for number, branch in enumerate(self.candidates):
            residual = self.weight - branch.product()
            lost = residual - nearest(residual, self.scheme)
            self.errors[number] += arithmetic(self.layer.kind, self.layer, x, lost, biased=False).double().square().sum()

    @property
    def best(self) -> low_rank.LowRank:
        """The one with the least error; of equals the first."""
        return self.candidates[int(self.errors.nan_to_num(torch.inf).argmin())]
