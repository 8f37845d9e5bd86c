"""GPTQ of a block: its layers one after another, in the order in which they run, each by what it reads once those before it are
rounded, towards what it gives in the full-precision network."""

from collections import deque
from typing import cast

import torch
from torch import Tensor, nn

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
            moments, weight = _moments(site, layer, original, batch), cast("Tensor", original.weight)
            levels = gptq(weight, layer.weight_qparams, layer.weight_scheme, moments.total, moments.shift)
            layer.set_weight(levels, layer.weight_qparams)
    return WeightReconstruction.state(site.block)


def _moments(site: Site, layer: QuantizedLayer, original: nn.Module, batch: int) -> InputMoments:
    """Of what the layer reads when the block runs, beside what the original layer reads in the full-precision network."""
    assert site.exact is not None
    seen, exact = InputMoments(layer), deque[Tensor]()
    handles = [
        original.register_forward_pre_hook(lambda _, args: exact.append(args[0].clone())),  # what follows may work in place
        layer.register_forward_pre_hook(lambda _, args: seen.observe(layer.input_quantizer(args[0]), exact.popleft())),
    ]
    try:
        for start in range(0, len(site.rows), batch):
            rows = slice(start, start + batch)
            run(site.original, site.exact.take(rows))
            run(site.block, site.rows.take(rows))
    finally:
        for handle in handles:
            handle.remove()
    return seen
