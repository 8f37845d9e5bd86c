"""A network of few layers, each of which may have another format."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdexp.quant import MinMax
from qdexp.quant import network as networks
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.layers import to_quantized
from qdexp.quant.scheme import Scheme
from qdexp.quant.shortcuts import chosen_sizes


class Attention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.q, self.k, self.v = (nn.Linear(32, 40) for _ in range(3))
        self.out = nn.Linear(40, 32)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (layer(x).unflatten(-1, (2, 20)).transpose(1, 2) for layer in (self.q, self.k, self.v))
        y: Tensor = self.out(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))
        return y


class Small(nn.Module):
    """A convolution that reads a concatenation, one layer that reads the timestep, and an attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(3, 24, 3, padding=1), nn.Conv2d(24, 40, 3, padding=1, stride=2)
        self.joined, self.last = nn.Conv2d(64, 32, 3, padding=1, bias=False), nn.Conv2d(32, 3, 1)
        self.time, self.attention = nn.Linear(1, 32), Attention()

    def forward(self, x: Tensor, timestep: Tensor) -> Tensor:
        skip = F.silu(self.first(x))
        deep = F.interpolate(F.silu(self.deep(skip)), scale_factor=2.0)
        h = self.joined(torch.cat([deep, skip], 1)) + self.time(timestep[:, None] / 1000)[:, :, None, None]
        tokens = h.flatten(2).transpose(1, 2)
        tokens = tokens + self.attention(tokens)
        y: Tensor = self.last(tokens.transpose(1, 2).unflatten(2, x.shape[2:]))
        return y


@dataclass(frozen=True)
class Made:
    """A quantized network and a batch of it."""

    network: nn.Module
    batch: Batch


@pytest.fixture
def small() -> Callable[..., Made]:
    """``small(weights, acts, change)``: quantized at W4A8, the convolution of the concatenation in parts, but for the layers of
    other schemes; ``change`` is called with the network before its weights are rounded."""

    def make(
        weights: Mapping[str, Scheme],
        acts: Mapping[str, Scheme],
        change: Callable[[Any], None] = lambda _: None,
        softmax_bits: int = 8,
    ) -> Made:
        torch.manual_seed(0)
        network = Small().eval().requires_grad_(False)
        batch: Batch = torch.randn(4, 3, 8, 8), torch.tensor([1.0, 300.0, 600.0, 900.0])
        adapter = Adapter(network, first_row(batch))
        networks.split(network, chosen_sizes(adapter.concatenations, "skip+conv1"))
        networks.convert(network, networks.plan_bits(network, adapter.layers, 4, 8), adapter.sites, softmax_bits=softmax_bits)
        for name in weights.keys() | acts.keys():
            to_quantized(network.get_submodule(name), weights.get(name), acts.get(name))
        change(network)
        networks.quantize_weights(network, MinMax(), nearest)
        networks.observe_activations(network, [batch], MinMax())
        return Made(network, batch)

    return make
