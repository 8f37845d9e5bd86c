"""Bytes of steps that change layers one by one, judging by a pass in which they look at each layer as it runs.

A dry run on the meta device with one candidate for each layer: all candidates take the same, and are there together.
"""

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import Tensor, nn

from qdexp.config import Model, Quant
from qdexp.footprint.passes import batch_of, full, tracing
from qdexp.live import Live, own_bytes
from qdexp.methods import low_rank, smooth
from qdexp.methods.base import Work
from qdexp.methods.layerwise import run_all, watching
from qdexp.methods.low_rank import LowRank
from qdexp.methods.smooth import Smooth
from qdexp.models.describe import per_architecture
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.transforms import Smoothing

Look = Callable[[Tensor, Tensor], object]
"""A look at a layer's input and output."""


@dataclass(frozen=True)
class _Candidate:
    """One in a layer. ``look``: what it does in a pass, if there is one; ``others``: bytes of those that are there with it."""

    look: Look | None
    others: int = 0


@per_architecture
@torch.no_grad()
def search_bytes(model: Model, step: Smooth | LowRank, quant: Quant, rows: int, changed: bool) -> int:
    """The peak of the step beside the network, in passes of ``rows`` rows. ``changed``: whether a step before has given layers
    other coordinates. Raises UserError where the network cannot run on shapes alone."""
    network = deepcopy(full(model))
    example, batch = (batch_of(network, model, count) for count in (1, rows))
    work = Work(
        network=network,
        quant=quant,
        model=model,
        example=example,
        batches=[],
        least=1,
        seed=0,
        folder=Path(),
        build=lambda: full(model),
    )
    with tracing() as live:
        layers = step.layers(work)
        if changed:
            for layer in layers.values():
                layer.transforms.append(Smoothing(layer.weight.shape[1], layer.channel_dim).to("meta"))
        _give_grids(step, work, layers)
        candidates, kept, building = dict[str, _Candidate](), 0, 0
        for name, layer in layers.items():
            before = live.peak = live.now
            candidates[name] = one = _candidate(step, layer)
            building = max(building, kept + live.peak - before)
            kept += live.now - before + one.others
        looked = _Looked(live, layers, candidates)
        if any(one.look for one in candidates.values()):
            with watching(layers, looked.look):
                run_all(network, [batch])
        return max(building, kept + max(looked.most, live.peak) - looked.before)


class _Looked:
    """A pass in which layers that are alike are looked at once. ``before``: the bytes at its begin; ``most``: at its peak."""

    def __init__(self, live: Live, layers: dict[str, QuantizedLayer], candidates: dict[str, _Candidate]) -> None:
        self.live, self.layers, self.candidates = live, layers, candidates
        self.before = self.most = live.peak = live.now
        self._taken: dict[object, int] = {}

    def look(self, name: str, x: Tensor, y: Tensor) -> None:
        live, layer, look = self.live, self.layers[name], self.candidates[name].look
        assert look is not None
        alike = type(layer), layer.weight.shape, layer.weight_scheme, str(layer.input_quantizer), x.shape, x.stride(), y.shape
        if alike not in self._taken:
            before, peak = live.now, live.peak
            live.peak = before
            look(x, y)
            self._taken[alike], live.peak = live.peak - before, peak
        self.most = max(self.most, live.now + self._taken[alike])


def _give_grids(step: Smooth | LowRank, work: Work, layers: dict[str, QuantizedLayer]) -> None:
    if isinstance(step, LowRank) or step.alpha == "search":
        step.give_grids(work, layers)


def _candidate(step: Smooth | LowRank, layer: QuantizedLayer) -> _Candidate:
    if isinstance(step, LowRank):
        branches = low_rank.Trial(layer, replace(step, rounds=1), 0)
        others = (step.rounds - 1) * own_bytes(branches.candidates[0])
        return _Candidate((lambda x, _: branches.look(x)) if step.rounds > 1 else None, others)
    ends = torch.zeros(2, layer.weight.shape[1], device="meta")
    if step.alpha != "search":
        smoothing = smooth.smoothing(layer, ends, (step.alpha, 1 - step.alpha))
        return _Candidate(lambda x, _: (smooth.ends_of(layer, x), smoothing))
    trial = smooth.Trial(layer, ends, smooth.SEARCHED[:1], step.rank, 0)
    one = nn.ModuleList(filter(None, (*trial.candidates, *trial.branches)))
    return _Candidate(trial.look, (len(smooth.SEARCHED) - 1) * own_bytes(one))
