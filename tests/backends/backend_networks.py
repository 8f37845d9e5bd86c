"""The embedded networks, quantized in a moment: ranges from a few rows of noise."""

from contextlib import suppress
from functools import cache
from typing import Any

import torch
from torch import nn

from benchmarks.subject import config_of
from qdexp import models
from qdexp.errors import NothingToSplitError
from qdexp.quant import MinMax, convert, observe_activations, plan_bits, quantize_weights
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.network import split
from qdexp.quant.shortcuts import chosen_sizes

ROWS = 4


@cache
def _config(name: str) -> Any:
    return config_of([f"model={name}", "method=ptq", "tracker=none", "device=cpu"])


def quantized_network(name: str, weight_bits: int, act_bits: int) -> tuple[nn.Module, Batch]:
    """A network, its shortcuts split where it has any, and four rows at as many timesteps."""
    config = _config(name)
    network = models.build(config.model, channels_last=True)
    x_t, t = torch.randn(ROWS, *config.model.shape), torch.linspace(0, 999, ROWS).long()
    batch: Batch = (x_t, t, {} if config.model.condition is None else {"class_labels": torch.arange(ROWS)})
    adapter = Adapter(network, first_row(batch))
    plan = plan_bits(network, adapter.layers, weight_bits, act_bits)
    with suppress(NothingToSplitError):
        split(network, chosen_sizes(adapter.concatenations, "skip+conv1"))
    convert(network, plan, adapter.sites)
    quantize_weights(network, MinMax(), nearest)
    observe_activations(network, [batch], MinMax())
    return network.eval(), batch
