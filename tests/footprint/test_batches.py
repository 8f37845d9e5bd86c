"""How many rows go through a network at once where nothing else is said."""

from collections.abc import Callable
from dataclasses import replace

import pytest
from hydra import compose, initialize_config_dir
from torch import Tensor, nn

from qdexp import device as devices
from qdexp.cell import Cell
from qdexp.config import Config, Model
from qdexp.footprint import passes, walks
from qdexp.footprint.batches import LEARNING, ROOM, SAMPLING, chosen
from qdexp.paths import conf_folder
from qdexp.sweep.freeze import freeze
from qdexp.sweep.results import say_settings

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]
AUTO = (f"{SAMPLING}=auto", f"{LEARNING}=auto")


class Choosy(nn.Module):
    """Cannot run on shapes alone."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor) -> Tensor:
        out: Tensor = self.layer(x_t)
        return out if int(t[0]) >= 0 else -out


def frozen(*overrides: str) -> Config:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return freeze(compose("config", list(overrides), return_hydra_config=True))


def batches_of(model: Model) -> tuple[int, int]:
    return chosen(model, SAMPLING), chosen(model, LEARNING)


@pytest.mark.parametrize(
    ("name", "sampling", "learning"),
    [
        *((name, 64, 8) for name in ("ddpm_fashion", "ddpm_fashion_bimodal", "dit_fashion")),
        ("ldm_bedroom", 64, 8),
        ("sd_v1_4", 32, 8),
        ("ddpm_bedroom", 16, 8),
        *(pytest.param(name, 16, 8, marks=pytest.mark.slow) for name in ("ddpm_church", "sd_v2_1", "sdxl")),  # 5 s
        *(pytest.param(name, 64, 8, marks=pytest.mark.slow) for name in ("ldm_church", "dit_xl_256", "pixart_alpha")),
    ],
)
def test_the_model_decides(name: str, sampling: int, learning: int) -> None:
    config = frozen(f"model={name}", "method=qdiffusion")
    assert (config.sampling.batch, config.recon.batch) == (sampling, learning)
    assert {step["batch"] for step in config.quantizer.filled.values() if "batch" in step} == {learning}


def test_nothing_else_does() -> None:
    for place in ("cpu", "cuda"):
        for options in (["method=fp"], ["quant=w32a8", "method=ptq"], ["quantizer=gptq", "calib.rows=3"]):
            with devices.elsewhere(place):
                config = frozen("model=ddpm_bedroom", *options)
            assert (config.sampling.batch, config.recon.batch) == (16, 8)


def test_numbers_that_are_named_stay() -> None:
    config = frozen("model=ddpm_bedroom", f"{SAMPLING}=24", "recon=published")
    assert (config.sampling.batch, config.recon.batch) == (24, 32)
    config = frozen("model=ddpm_bedroom", f"{LEARNING}=5", "method=qdiffusion")
    assert (config.sampling.batch, config.recon.batch, config.quantizer.steps["scales"]["batch"]) == (16, 5, 5)
    smoke = frozen("scale=smoke")
    assert (smoke.sampling.batch, smoke.recon.batch) == (16, 2)


def test_what_is_chosen_has_the_key_of_its_number(cell_of: CellOf) -> None:
    rows = ("calib.rows=10", "recon.heldout=4", "method=qdiffusion")
    by_itself, named = cell_of(*rows, *AUTO), cell_of(*rows, f"{SAMPLING}=64", f"{LEARNING}=8")
    assert by_itself.config == named.config
    assert by_itself.keys == named.keys


def test_one_row_goes_where_there_is_room_for_none(cell_of: CellOf) -> None:
    model = replace(cell_of("method=fp").config.model, shape=[1, 2**15, 2**15])
    assert batches_of(model) == (1, 1)


@pytest.mark.slow  # 70 s
@pytest.mark.parametrize("name", ["sd_v1_4", "ddpm_bedroom", "sd_v2_1", "pixart_alpha"])
def test_there_is_room_for_what_is_chosen(name: str) -> None:
    model = frozen(f"model={name}").model
    sampling, learning = batches_of(model)
    assert passes.pass_bytes(model, sampling, 2, True, True) < 1.25 * ROOM
    assert walks.walked(model, walks.SCALES, learning, "nearest").step < ROOM
    assert walks.walked(model, walks.WEIGHTS, learning, "nearest").step < ROOM


def test_the_rows_at_once_are_said(cell_of: CellOf, capsys: pytest.CaptureFixture[str]) -> None:
    rows = ("calib.rows=10", "recon.heldout=4")
    cells = [cell_of(*rows, f"method={method}", *AUTO) for method in ("fp", "qdiffusion")]
    cells.append(cell_of(*rows, "method=qdiffusion", f"{SAMPLING}=8", "quantizer.steps.scales.batch=2"))
    say_settings(cells[:1])
    assert "\nbatch    sampling.batch=64\n" in capsys.readouterr().out
    say_settings(cells)
    assert "\nbatch    sampling.batch=8,64 recon.batch=2,4,8\n" in capsys.readouterr().out


def test_a_number_beside_what_stands_for_it_is_no_axis(qdexp: Command) -> None:
    code, _, err = qdexp("-m", "hydra.launcher.dry=true", "method=ptq", f"{SAMPLING}=auto,64")
    assert code == 1 and f"{SAMPLING}=64 {SAMPLING}=auto: all cells come out equal" in err


def test_a_network_that_cannot_be_traced_has_those_of_small_ones(qdexp: Command) -> None:
    network = ("~model.network", f"+model.network={{_target_: {__name__}.Choosy}}", "model.weights=random", "protocol=quick")
    code, out, _ = qdexp("-m", "hydra.launcher.dry=true", "method=fp,qdiffusion", "calib.rows=10", *network, *AUTO)
    assert code == 0
    assert "\nbatch    sampling.batch=64 recon.batch=8, as of small models: the network cannot run on shapes alone\n" in out
    assert "not traced: its passes: model.network: it cannot run on shapes alone" in out
