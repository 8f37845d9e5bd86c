"""GPTQ of a block: its layers one after another, in the order in which they run, each by what it reads once those before it are
rounded, towards what it gives in the full-precision network."""

from contextlib import closing, suppress
from functools import partial
from typing import cast

import torch
from torch import Tensor, nn

from qdexp.quant.blocks import Call, run
from qdexp.quant.context import CallState, knowing
from qdexp.quant.gptq import InputMoments, gptq
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.network import execution_order
from qdexp.recon.learning import Site, State, WeightReconstruction


@torch.no_grad()
def round_block(site: Site, seed: int) -> State:
    """Rounds the weights of the site's block by its rows; `seed`: of the values that are looked at. Returns the block's
    state."""
    args, kwargs = site.rows.take(slice(0, 1))
    for name in execution_order(site.original, (*args, kwargs)):
        layer, original = (block.get_submodule(name) for block in (site.block, site.original))
        if isinstance(layer, QuantizedLayer) and layer.weight_scheme is not None and layer.weight_qparams is not None:
            moments, own = _moments(site, layer, original, seed), layer.own_weight(cast("Tensor", original.weight))
            levels = gptq(own, layer.weight_qparams, layer.weight_scheme, moments.total, moments.shift)
            layer.set_weight(levels, layer.weight_qparams)
    return WeightReconstruction.state(site.block)


def _moments(site: Site, layer: QuantizedLayer, original: nn.Module, seed: int) -> InputMoments:
    """The moments of the layer's input when the block runs, beside what the original layer reads in the full-precision network,
    on the first rows, as many as are needed: every prefix of them is stratified."""
    whole = layer.transformed_weight(cast("Tensor", original.weight))
    beside = None if layer.branch is None else layer.branch.product()
    moments, times, parts = InputMoments(original, len(site.rows), seed, whole, beside), None, site.parts()
    with closing(site.ahead(partial(_paired, site), parts)) as read:
        for part, (given, called, state) in zip(parts, read, strict=True):
            exact = _read(site.original, original, given, times)
            with knowing(site.block, state):
                seen = _read(site.block, layer, called, times)
                for x, other in zip(seen, exact, strict=True):
                    moments.observe(layer.quantized_input(x), layer.transformed(other), layer.transformed(x))
            times = len(seen)
            if part.stop >= moments.rows:
                break
    return moments


def _paired(site: Site, rows: slice) -> tuple[Call, Call, CallState]:
    """The arguments of the full-precision block and of the quantized one for these rows, and the call state of the latter."""
    assert site.exact is not None
    return site.exact.take(rows), site.rows.take(rows), site.rows.state(rows)


class _Enough(Exception):  # noqa: N818 - no error
    """The rest of the pass is not needed."""


def _read(block: nn.Module, layer: nn.Module, call: Call, times: int | None) -> list[Tensor]:
    """The inputs of the layer when the block runs, which stops once the layer has run so many `times`."""
    seen: list[Tensor] = []

    def look(_: nn.Module, args: tuple[Tensor, ...]) -> None:
        seen.append(args[0].clone())  # what follows may work in place
        if len(seen) == times:
            raise _Enough

    handle = layer.register_forward_pre_hook(look)
    try:
        with suppress(_Enough):
            run(block, call)
    finally:
        handle.remove()
    return seen
