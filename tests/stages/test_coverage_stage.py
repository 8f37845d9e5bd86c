"""What of a network would be quantized is told before any work; where only its own pass can tell, by the stage."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from qdexp.cell import Cell
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.stages import coverage
from qdexp.store import Store

CellOf = Callable[..., Cell]


class Plain(nn.Module):
    """A network all of which can be quantized."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (self.conv(x),)


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


class Curious(Partly):
    """It cannot run without values."""

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return super().forward(x + float(x.abs().max()), t)


def of(cell_of: CellOf, network: type[nn.Module], *arguments: str) -> Config:
    config = cell_of(*arguments).config
    return replace(config, model=replace(config.model, network={"_target_": f"{__name__}.{network.__name__}"}))


def test_where_nothing_is_quantized_no_work_begins(cell_of: CellOf) -> None:
    with pytest.raises(
        UserError, match=r"^model\.network: nothing of it would be quantized at w4a8.*Bare: weight.*quantizer=none"
    ):
        coverage.check(of(cell_of, Bare))


LITTLE = "of what w4a{} asks for, only 25.0% of the MACs and 25.0% of the parameters are quantized; left out: Conv3d: volume\n"


def test_where_little_is_quantized_one_line_says_so(cell_of: CellOf, capsys: pytest.CaptureFixture[str]) -> None:
    coverage.check(of(cell_of, Partly))
    assert capsys.readouterr().out == f"warning: tiny: {LITTLE.format(8)}"
    coverage.check(of(cell_of, Plain))
    assert capsys.readouterr().out == ""


def test_bits_of_a_layer_that_cannot_be_quantized_are_refused(cell_of: CellOf) -> None:
    config = of(cell_of, Partly)
    wrong = replace(config.quant, layers={"vol*": {"weight_bits": 8}})
    told = r"^quant\.layers: 'vol\*' matches no layer that can be quantized: volume, a Conv3d, stays in full precision$"
    with pytest.raises(UserError, match=told):
        coverage.check(replace(config, quant=wrong))
    wrong = replace(config.quant, layers={"convolution": {"weight_bits": 8}})
    with pytest.raises(UserError, match="matches no layer; layers are called like 'conv'"):
        coverage.check(replace(config, quant=wrong))


def made(cell_of: CellOf, network: type[nn.Module]) -> Path:
    """The stage's folder, of a network with rounded weights that nobody has checked."""
    cell = Cell(of(cell_of, network, "model.weights=random", "quant=w4a32", "sampling.channels_last=false"))
    return cell.stages["coverage"].make(Store(cell.out)).folder


def test_the_stage_makes_nothing_where_nothing_is_quantized(cell_of: CellOf, executed: Callable[..., list[str]]) -> None:
    with pytest.raises(UserError, match=r"^model\.network: nothing of it would be quantized at w4a32"):
        made(cell_of, Bare)
    assert [entry.split("-")[0] for entry in executed()] == ["weights"]


def test_where_nothing_was_said_before_the_stage_says_it(cell_of: CellOf, capsys: pytest.CaptureFixture[str]) -> None:
    config = of(cell_of, Curious)
    capsys.readouterr()
    coverage.check(config)
    assert capsys.readouterr().out == ""
    made(cell_of, Curious)
    assert f"warning: tiny: {LITTLE.format(32)}" in capsys.readouterr().out
    made(cell_of, Partly)
    assert "warning: tiny" not in capsys.readouterr().out, "the check has said it"
