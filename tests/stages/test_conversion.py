from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from qdexp import models
from qdexp.cell import Cell
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.quant import (
    MinMax,
    PerChannel,
    PerTensor,
    Split,
    checkpoint,
    observe_activations,
    qparams_from_range,
    quantize_weights,
)
from qdexp.quant.network import LayerBits, quantized_layers
from qdexp.quant.rounding import nearest
from qdexp.quant.shortcuts import concatenations
from qdexp.stages import conversion, requirements
from qdexp.stages.calibration import CalibrationStage, read_rows
from qdexp.store import Store

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


def convert(network: nn.Module, config: Config) -> dict[str, LayerBits]:
    return conversion.convert(network, config.quant, config.quantizer.weight, config.quantizer.split, batches())


@pytest.mark.parametrize("scope", ["off", "skip", "skip+conv1"])
def test_the_layers_of_the_scope_are_split(cell_of: CellOf, scope: str) -> None:
    config = cell_of(f"quantizer.split={scope}").config
    network = models.build(config.model, channels_last=True)
    joined = concatenations(network, batches(1)[0])
    convert(network, config)
    for name, layer in quantized_layers(network):
        split = scope != "off" and name in joined and (joined[name].direct or scope == "skip+conv1")
        quantizer: Any = layer.input_quantizer
        assert layer.weight_scheme is not None
        assert layer.weight_scheme.granularity == (Split(joined[name].sizes, PerChannel()) if split else PerChannel())
        assert quantizer.scheme.granularity == (Split(joined[name].sizes) if split else PerTensor())


def test_a_split_that_finds_nothing_is_reported_before_any_work(cell_of: CellOf) -> None:
    config = cell_of("quantizer.split=skip").config
    config.model.network = {"_target_": f"{__name__}.Plain"}
    with pytest.raises(UserError, match=r"^quantizer\.split=skip"):
        requirements.check(config)
    config.quantizer.split = "off"
    requirements.check(config)


def test_a_network_that_needs_values_is_reported_by_the_stage(cell_of: CellOf) -> None:
    config = cell_of("quantizer.split=skip").config
    config.model.network = {"_target_": f"{__name__}.Curious"}
    requirements.check(config)
    with pytest.raises(UserError, match=r"^quantizer\.split=skip"):
        convert(Curious(), config)


class Bare(nn.Module):
    """No layer of torch."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1, 1, 3, 3))

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (torch.conv2d(x, self.weight, padding=1),)


class Partly(Plain):
    """A layer of a kind that is not quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.volume = nn.Conv3d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return super().forward(self.volume(x[:, :, None])[:, :, 0], t)


class Forgets(Plain):
    """Keeps what it has drawn where nothing finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.drawn = [torch.randn(1, 1, 28, 28, device="cpu")]

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return super().forward(x + self.drawn[0].to(x.device), t)


def of(cell_of: CellOf, network: type[nn.Module], *arguments: str) -> Config:
    config = cell_of(*arguments).config
    config.model.network = {"_target_": f"{__name__}.{network.__name__}"}
    return config


def test_where_nothing_is_quantized_no_work_begins(cell_of: CellOf) -> None:
    with pytest.raises(
        UserError, match=r"^model\.network: nothing of it would be quantized at w4a8.*Bare: weight.*quantizer=none"
    ):
        requirements.check(of(cell_of, Bare))


def test_where_little_is_quantized_one_line_says_so(cell_of: CellOf, capsys: pytest.CaptureFixture[str]) -> None:
    requirements.check(of(cell_of, Partly))
    line = "warning: tiny: of what w4a8 asks for, only 25.0% of the MACs and 25.0% of the parameters are quantized; left out: "
    assert capsys.readouterr().out == f"{line}Conv3d: volume\n"
    requirements.check(of(cell_of, Plain))
    assert capsys.readouterr().out == ""


def test_bits_of_a_layer_that_cannot_be_quantized_are_refused(cell_of: CellOf) -> None:
    config = of(cell_of, Partly)
    config.quant.layers = {"vol*": {"weight_bits": 8}}
    told = r"^quant\.layers: 'vol\*' matches no layer that can be quantized: volume, a Conv3d, stays in full precision$"
    with pytest.raises(UserError, match=told):
        requirements.check(config)
    config.quant.layers = {"convolution": {"weight_bits": 8}}
    with pytest.raises(UserError, match="matches no layer; layers are called like 'conv'"):
        requirements.check(config)


@pytest.mark.parametrize(("network", "told"), [(Bare, "nothing of it"), (Forgets, "Forgets computes something else when")])
def test_what_only_the_stage_can_tell_it_tells(cell_of: CellOf, network: type[nn.Module], told: str, tmp_path: Path) -> None:
    config = of(cell_of, network)
    torch.manual_seed(1)
    made = network().eval()
    plan = convert(made, config)
    quantize_weights(made, MinMax(), nearest)
    observe_activations(made, batches(), MinMax())
    with pytest.raises(UserError, match=rf"^model\.network: {told}"):
        conversion.keep(tmp_path, made, config.model, config.quant, plan, batches()[0])


@pytest.mark.parametrize(("rows", "seen"), [(1, 2), (3, 3), (None, 8)])
def test_activation_ranges_are_those_of_the_first_rows(cell_of: CellOf, rows: int | None, seen: int) -> None:
    """The first convolution reads x_t itself; of 8 rows of 2 timesteps, in batches of 2. No timestep goes unseen."""
    cell = cell_of("quantizer=linear", f"quantizer.act.rows={'null' if rows is None else rows}", "sampling.batch=2")
    store = Store(cell.out)
    network: Any = checkpoint.load(cell.stages["quantization"].make(store).folder / "checkpoint")
    x_t, t = (part[:seen] for part in read_rows(store.folder(cell.stages["calibration"].entry)))
    scheme = network.conv_in.input_quantizer.scheme
    low, high = x_t.aminmax()
    expected = qparams_from_range(low.view(1), high.view(1), scheme)
    assert torch.equal(network.conv_in.input_quantizer.scale, expected.scale)
    assert len(x_t) == seen
    assert len(t.unique()) == 2


def test_with_guidance_ranges_see_every_timestep_under_both_conditions(cell_of: CellOf) -> None:
    config = cell_of("quantizer=linear").config
    config.protocol.guidance = 2.0
    assert conversion.observed_rows(3, CalibrationStage.of(config)) == 4
