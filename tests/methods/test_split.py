"""Which convolutions are quantized in parts, and what is said where there are none."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from step_helpers import take, work_of
from torch import Tensor, nn

from qdexp import models
from qdexp.cell import Cell
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.methods import SplitShortcuts
from qdexp.methods.recipe import check, steps_of
from qdexp.quant import PerChannel, PerTensor, Split
from qdexp.quant.network import quantized_layers
from qdexp.quant.shortcuts import concatenations

CellOf = Callable[..., Cell]


class Plain(nn.Module):
    """A network that concatenates nothing."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (self.conv(x),)


class Curious(Plain):
    """A network that cannot run without values."""

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return super().forward(x * float(x.abs().max()), t)


def batches(rows: int = 4) -> list[tuple[Tensor, Tensor]]:
    return [(torch.randn(rows, 1, 28, 28), torch.randint(0, 1000, (rows,)))]


def of(cell_of: CellOf, network: type[nn.Module]) -> Config:
    config = cell_of("quantizer.steps.split.scope=skip").config
    return replace(config, model=replace(config.model, network={"_target_": f"{__name__}.{network.__name__}"}))


@pytest.mark.parametrize("scope", ["off", "skip", "skip+conv1"])
def test_the_layers_of_the_scope_are_split(cell_of: CellOf, scope: str) -> None:
    config = cell_of(f"quantizer.steps.split.scope={scope}").config
    network = models.build(config.model, channels_last=True)
    joined = concatenations(network, batches(1)[0])
    take(config, network, batches())
    layers = list(quantized_layers(network))
    assert len(layers) > len(joined) > 0
    for name, layer in layers:
        split = scope != "off" and name in joined and (joined[name].direct or scope == "skip+conv1")
        quantizer: Any = layer.input_quantizer
        assert layer.weight_scheme is not None
        assert layer.weight_scheme.granularity == (Split(joined[name].sizes, PerChannel()) if split else PerChannel())
        assert quantizer.scheme.granularity == (Split(joined[name].sizes) if split else PerTensor())


def test_a_split_that_finds_nothing_is_reported_before_any_work(cell_of: CellOf) -> None:
    config = of(cell_of, Plain)
    with pytest.raises(UserError, match=r"^quantizer\.steps\.split\.scope=skip: no convolution"):
        check(config, steps_of(config))
    config.quantizer.steps["split"]["scope"] = "off"
    check(config, steps_of(config))


def test_a_network_that_needs_values_is_reported_by_the_step(cell_of: CellOf) -> None:
    config = of(cell_of, Curious)
    check(config, steps_of(config))
    with pytest.raises(UserError, match=r"^quantizer\.steps\.split\.scope=skip: no convolution"):
        SplitShortcuts(scope="skip").apply(work_of(config, Curious(), batches()))
