"""GPTQ of a block: its layers one after another, in the order in which they run, each by what it reads once those before it are
rounded."""

from typing import Any

import torch
from torch import Tensor

from qdexp.quant.blocks import run
from qdexp.quant.gptq import InputMoments, gptq
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.network import execution_order
from qdexp.recon.learning import Site, State, WeightReconstruction


@torch.no_grad()
def round_block(site: Site, batch: int) -> State:
    """Rounds the weights of the site's block by its rows, `batch` at a time. Returns the block's state."""
    args, kwargs = site.rows.take(slice(0, 1))
    for name in execution_order(site.original, (*args, kwargs)):
        layer, original = (block.get_submodule(name) for block in (site.block, site.original))
        if isinstance(layer, QuantizedLayer) and layer.weight_scheme is not None and layer.weight_qparams is not None:
            weight: Any = original.weight
            moments = _moments(site, layer, batch)
            layer.set_weight(gptq(weight, layer.weight_qparams, layer.weight_scheme, moments), layer.weight_qparams)
    return WeightReconstruction.state(site.block)


def _moments(site: Site, layer: QuantizedLayer, batch: int) -> Tensor:
    """H of the layer, over what it reads when the block runs."""
    seen = InputMoments(layer)
    handle = layer.register_forward_pre_hook(lambda _, args: seen.observe(layer.input_quantizer(args[0])))
    try:
        for start in range(0, len(site.rows), batch):
            run(site.block, site.rows.take(slice(start, start + batch)))
    finally:
        handle.remove()
    return seen.total
