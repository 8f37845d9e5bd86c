"""Networks in full precision and quantized, in a moment: ranges come from a few rows of noise, no cost depends on them."""

from contextlib import suppress
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn

from qdexp import models
from qdexp.config import Model
from qdexp.errors import NothingToSplitError
from qdexp.models.conditions import example_condition
from qdexp.quant import MinMax, convert, observe_activations, plan_bits, quantize_weights
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.network import split
from qdexp.quant.shortcuts import chosen_sizes

OBSERVED = 4
"""Rows that ranges come from, at most."""


@dataclass(frozen=True)
class Pair:
    """``batch``: what both can be called with, noise at timesteps from first to last."""

    full: nn.Module
    quantized: nn.Module
    batch: Batch

    @classmethod
    def of(cls, model: Model, rows: int, weight_bits: int, act_bits: int, scope: str = "skip") -> "Pair":
        """Static grids per tensor, weights per channel; shortcuts are split, where the network has any."""
        full = models.build(model, channels_last=True)
        generator = torch.Generator().manual_seed(0)
        x_t = torch.randn(rows, *model.shape, generator=generator).contiguous(memory_format=torch.channels_last)
        t = torch.linspace(0, 999, rows).long()
        batch: Batch = (x_t, t, example_condition(full, rows, model.example))
        quantized = deepcopy(full)
        adapter = Adapter(quantized, first_row(batch))
        plan = plan_bits(quantized, adapter.layers, weight_bits, act_bits)
        with suppress(NothingToSplitError):
            split(quantized, chosen_sizes(adapter.concatenations, scope))
        convert(quantized, plan, adapter.sites)
        quantize_weights(quantized, MinMax(), nearest)
        observe_activations(quantized, [first_row(batch, min(rows, OBSERVED))], MinMax())
        return cls(full, quantized.eval(), batch)
