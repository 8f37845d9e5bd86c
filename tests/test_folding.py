"""Weights that are computed at each call, computed once."""

import warnings
from collections.abc import Callable

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

from qdexp.folding import fold


class Noisy(nn.Module):
    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight + torch.randn_like(weight)


def noisy() -> nn.Module:
    layer = nn.Linear(4, 4)
    parametrize.register_parametrization(layer, "weight", Noisy())
    return layer


def normed() -> nn.Module:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        return weight_norm(nn.Linear(4, 4))


HOW: dict[str, Callable[[], nn.Module]] = {
    "weight norm by hook": normed,
    "weight norm": lambda: parametrizations.weight_norm(nn.Linear(4, 4)),
    "spectral norm by hook": lambda: spectral_norm(nn.Linear(4, 4)),
    "spectral norm": lambda: parametrizations.spectral_norm(nn.Linear(4, 4)),
    "pruned": lambda: prune.random_unstructured(nn.Linear(4, 4), "weight", 0.5),
    "embedding": lambda: parametrizations.weight_norm(nn.Embedding(4, 4)),
}


@pytest.mark.parametrize("how", HOW)
def test_a_folded_layer_is_a_plain_one_that_computes_the_same(how: str) -> None:
    network = nn.Sequential(HOW[how]()).eval()
    x = torch.arange(4) if how == "embedding" else torch.randn(4, 4)
    before = network(x)
    fold(network)
    plain = nn.Embedding(4, 4) if how == "embedding" else nn.Linear(4, 4)
    assert type(network[0]) is type(plain)
    assert isinstance(network[0].weight, nn.Parameter)
    plain.load_state_dict(network[0].state_dict())
    network[0].load_state_dict(plain.state_dict())
    assert torch.equal(network(x), before) and torch.equal(plain(x), before)


def test_what_differs_from_call_to_call_is_left_alone() -> None:
    network = nn.Sequential(noisy())
    fold(network)
    assert parametrize.is_parametrized(network[0])


def test_plain_networks_keep_their_tensors() -> None:
    network = nn.Sequential(nn.Linear(4, 4), nn.Embedding(2, 4))
    before = list(network.parameters())
    fold(network)
    assert all(one is other for one, other in zip(network.parameters(), before, strict=True))
