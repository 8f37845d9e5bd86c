"""Smoothed channels, as a step: what is large in some channels of an input moves to their weights.

    s_j = max |X_j|^alpha / max |W_j|^beta,    beta = 1 - alpha

for each input channel j (SmoothQuant, Xiao et al. 2023, arXiv 2211.10438, equation 4). Which exponents suit a layer depends on
its grids: they are searched, by the error of the layer's output when input and weight are rounded as the cell will round them,
to nearest values of ranges from end to end. The exponents tried are those of the search of SVDQuant (Li et al. 2024,
arXiv 2411.05007): none, alpha with beta = 1 - alpha, and alpha alone, in twentieths.
"""

from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import torch
from annotated_types import Ge, Gt, Le
from torch import Tensor, nn

from qdexp.config import Quant
from qdexp.methods.base import Work
from qdexp.methods.layerwise import LayerWise, quantized_at_all, run_all, watching
from qdexp.methods.observe import give_activations_grids
from qdexp.methods.weights import give_weights_grids
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.blocks import Batch
from qdexp.quant.layers import QuantizedLayer, arithmetic
from qdexp.quant.low_rank import approximated, largest_rank
from qdexp.quant.nearest import nearest, spanning
from qdexp.quant.network import LayerBits
from qdexp.quant.transforms import Smoothing

STEPS = 20
"""Into which the exponents from 0 to 1 are cut."""
ROUNDED = 1.4
"""A pass through layers whose input and weight are rounded anew, in full-precision passes: measured on the embedded model."""
Exponents = tuple[float, float]
SEARCHED: Sequence[Exponents] = [
    (0.0, 0.0),
    *((step / STEPS, 0.0) for step in range(1, STEPS)),
    *((step / STEPS, 1 - step / STEPS) for step in range(1, STEPS)),
]


@dataclass(frozen=True, kw_only=True)
class Smooth(LayerWise):
    """Divides the input channels of each layer by factors, and multiplies its weight by them.

    Attributes:
        alpha: How much of the input's range moves to the weight, 0 to 1; ``search``: for each layer the exponents with the
            least error.
        rows: The rows of the calibration set that ranges and errors are taken from (null: all), one of each timestep and
            guidance branch at least.
        rank: The rank of the branches that a later step adds, which the search takes into account; null: there are none.
    """

    alpha: Annotated[float, Ge(0), Le(1)] | Literal["search"] = "search"
    rows: Annotated[int, Gt(0)] | None = 64
    rank: Annotated[int, Gt(0)] | None = None

    def depends_on(self, quant: Quant) -> Quant:
        """Groups of timesteps come later, from ranges of all timesteps on."""
        own = super().depends_on(quant)
        return own.at("static") if own.act.time == "groups" else own

    def fits(self, layer: nn.Module, bits: LayerBits) -> bool:
        return quantized_at_all(bits)

    @torch.no_grad()
    def apply(self, work: Work) -> None:
        layers, batches = self.layers(work), work.first(self.rows)
        ends = _ends(work.network, layers, batches)
        if self.alpha == "search":
            self.give_grids(work, layers)
            trials = {name: Trial(layer, ends[name], SEARCHED, self.rank, work.seed_of(name)) for name, layer in layers.items()}
            with watching(layers, lambda name, x, y: trials[name].look(x, y)):
                run_all(work.network, batches)
            chosen = {name: trial.best for name, trial in trials.items()}
        else:
            chosen = {name: smoothing(layer, ends[name], (self.alpha, 1 - self.alpha)) for name, layer in layers.items()}
        for name, layer in layers.items():
            layer.weight_scheme, layer.input_quantizer = None, nn.Identity()  # steps to come have grids of their own
            layer.transforms.append(chosen[name])

    def give_grids(self, work: Work, layers: Iterable[str]) -> None:
        """Give weights and inputs the grids that errors are judged by."""
        plan = {name: work.plan[name] for name in layers}
        give_weights_grids(work.network, plan, work.quant)
        give_activations_grids(work.network, plan, work.quant)

    def passes(self, rows: int) -> float:
        own = rows if self.rows is None else min(rows, self.rows)
        return own * (2 + ROUNDED * len(SEARCHED) if self.alpha == "search" else 1)


def factors(read: Tensor, weight: Tensor, exponents: Exponents) -> Tensor:
    """s, [channels]; 1 in channels in which nothing is read or multiplied. read, weight: the largest magnitudes in them."""
    alpha, beta = exponents
    found = read.pow(alpha) / weight.pow(beta)
    return torch.where((read > 0) & (weight > 0) & found.isfinite() & (found > 0), found, 1.0)


def smoothing(layer: QuantizedLayer, ends: Tensor, exponents: Exponents) -> Smoothing:
    """The smoothing of a layer's input. ends: its smallest and largest value of each channel, [2, channels]."""
    weight = layer.transformed_weight(layer.weight).abs().movedim(1, 0).flatten(1).amax(1)
    return Smoothing.by(factors(ends.abs().amax(0), weight.float(), exponents), layer.channel_dim)


class Trial:
    """Exponents in one layer, which has its grids: the squared error of its output by each."""

    def __init__(self, layer: QuantizedLayer, ends: Tensor, searched: Sequence[Exponents], rank: int | None, seed: int) -> None:
        """ends: as in ``smoothing``; searched: the exponents; rank: of a branch beside it, if there will be one; seed: of what
        it draws."""
        self.layer, self.ends = layer, ends
        self.candidates = [smoothing(layer, ends, exponents) for exponents in searched]
        weight = layer.transformed_weight(layer.weight)
        self.branches = [
            None if rank is None else approximated(candidate.weight(weight), min(rank, largest_rank(weight)), seed)
            for candidate in self.candidates
        ]
        self.errors = torch.zeros(len(searched), dtype=torch.float64, device=ends.device)

    def look(self, x: Tensor, y: Tensor) -> None:
        """Take in an input of the layer and its output."""
        layer = self.layer
        x, weight = layer.transformed(x), layer.transformed_weight(layer.weight)
        for number, (candidate, branch) in enumerate(zip(self.candidates, self.branches, strict=True)):
            scaled, own = candidate(x), candidate.weight(weight)
            rest = nearest(own if branch is None else own - branch.product(), layer.weight_scheme).to(x.dtype)
            found = arithmetic(layer.kind, layer, self._rounded(candidate, scaled), rest)
            found = found if branch is None else found + branch(scaled, layer)
            self.errors[number] += (found - y).double().square().sum()

    def _rounded(self, candidate: Smoothing, scaled: Tensor) -> Tensor:
        quantizer = self.layer.input_quantizer
        if not isinstance(quantizer, ActivationQuantizer):
            return scaled
        if quantizer.observed:  # a grid that lies always: from end to end of all that is read
            quantizer.set_qparams(spanning(candidate(self.ends), quantizer.scheme))
        quantizer.mode = "on"
        rounded: Tensor = quantizer(scaled)
        quantizer.mode = "off"
        return rounded

    @property
    def best(self) -> Smoothing:
        """The one with the least error; of equals the first."""
        return self.candidates[int(self.errors.nan_to_num(torch.inf).argmin())]


def ends_of(layer: QuantizedLayer, x: Tensor) -> Tensor:
    """The smallest and the largest value of each channel of what a layer reads, [2, channels]."""
    channels = layer.transformed(x).float().movedim(layer.channel_dim, 0).flatten(1)
    return torch.stack(channels.aminmax(dim=1))


def _ends(network: nn.Module, layers: Mapping[str, QuantizedLayer], batches: Sequence[Batch]) -> dict[str, Tensor]:
    """The smallest and the largest value of each channel of what the layers read, [2, channels] by the layers' names."""
    seen: dict[str, list[Tensor]] = defaultdict(list)

    def look(name: str, x: Tensor, _: Tensor) -> None:
        seen[name].append(ends_of(layers[name], x))

    with watching(layers, look):
        run_all(network, batches)
    return {
        name: torch.stack([torch.stack(each)[:, 0].amin(0), torch.stack(each)[:, 1].amax(0)]) for name, each in seen.items()
    }
