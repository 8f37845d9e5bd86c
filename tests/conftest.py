"""What all tests share: one tiny U-Net."""

import gc
import json
import re
import shutil
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from conditional import write_models
from diffusers import UNet2DModel
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf
from safetensors.torch import save_file

from qdexp import layout
from qdexp.__main__ import main
from qdexp.cell import Cell, Passed, preflight
from qdexp.overrides import completed
from qdexp.paths import conf_folder
from qdexp.sweep.freeze import freeze, share

torch.set_num_threads(1)  # networks this small gain nothing from threads, and lose much where cores are shared

TINY_UNET: dict[str, Any] = {
    "_target_": "diffusers.UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "dropout": 0.1,
}


@pytest.fixture
def tiny_architecture() -> dict[str, Any]:
    """The class and arguments of `tiny_unet`, as a checkpoint records them."""
    return dict(TINY_UNET)


@pytest.fixture
def tiny_unet() -> UNet2DModel:
    """A new U-Net of 45 thousand random parameters: images [n, 1, 8, 8], attention of two heads, dropout, eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(**{key: value for key, value in TINY_UNET.items() if key != "_target_"}).eval()


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Leaves out what needs a GPU, where there is none."""
    if not torch.cuda.is_available():
        for item in items:
            if item.get_closest_marker("gpu"):
                item.add_marker(pytest.mark.skip(reason="needs a GPU; torch sees none here"))


def pytest_collection_finish() -> None:
    """What has been imported stays: it is not looked through for garbage again and again."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


TINY_YAML = """\
# A user's own model: any architecture by its name, weights in safetensors.
name: tiny
weights: {weights}
shape: [1, 28, 28]
network:
  _target_: diffusers.UNet2DModel
  sample_size: 28
  in_channels: 1
  out_channels: 1
  layers_per_block: 1
  block_out_channels: [8, 8]
  down_block_types: [DownBlock2D, AttnDownBlock2D]
  up_block_types: [AttnUpBlock2D, UpBlock2D]
  norm_num_groups: 4
  attention_head_dim: null
schedule:
  num_train_timesteps: 1000
  beta_schedule: linear
  beta_start: 0.0001
  beta_end: 0.02
  prediction_type: epsilon
"""
SMALL = (
    "model=tiny",
    "tracker=none",
    "device=cpu",
    "sweep=trial",
    "protocol.n=20",
    "protocol.heldout=8",
    "protocol.steps=4",
    "trajectory.samples=16",
    "calib.timesteps=2",
    "calib.rows=4",
    "sampling.batch=8",
    "inspection.rows=0",
    "recon.batch=4",
    "recon.heldout=4",
    "recon.weights.iterations=4",
    "recon.scales.iterations=2",
)


@pytest.fixture(scope="session")
def own_conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A user's config folder: a model of their own with random weights beside it."""
    folder = tmp_path_factory.mktemp("own") / "myconf"
    (folder / "model").mkdir(parents=True)
    yaml = TINY_YAML.format(weights=folder / "tiny.safetensors")
    (folder / "model" / "tiny.yaml").write_text(yaml)
    network = {str(key): value for key, value in OmegaConf.create(yaml).network.items() if key != "_target_"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        save_file(UNet2DModel(**network).state_dict(), folder / "tiny.safetensors")
    return folder


@pytest.fixture
def small(own_conf: Path, tmp_path: Path) -> list[str]:
    """Options of a cell that takes a second: the tiny model, few images and steps, 20 images in batches of 8."""
    return [f"hydra.searchpath=[file://{own_conf}]", f"out={tmp_path / 'out'}", *SMALL]


@pytest.fixture(scope="module")
def _shared() -> tuple[dict[str, Any], Passed]:
    """The parts of the cells of a file, and the checks that these have passed: as in a sweep."""
    return {}, {}


@pytest.fixture
def cell_of(small: list[str], _shared: tuple[dict[str, Any], Passed]) -> Callable[..., Cell]:
    """``cell_of(*arguments)``: the checked cell of a command line; arguments win over ``small``."""

    def cell(*arguments: str) -> Cell:
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config = freeze(compose("config", completed(_merged(small, arguments)), return_hydra_config=True))
        parts, passed = _shared
        return preflight(share(config, parts), passed)

    return cell


@pytest.fixture
def conditional(tmp_path: Path) -> str:
    """The option that makes ``tiny_dit``, ``tiny_cross`` and ``tiny_sd3`` known, with random weights."""
    write_models(tmp_path / "conditional")
    return f"hydra.searchpath=[file://{tmp_path / 'conditional'}]"


@pytest.fixture(scope="session")
def _kept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output folders of ``finished``, by cell."""
    return tmp_path_factory.mktemp("finished")


@pytest.fixture
def finished(cell_of: Callable[..., Cell], _kept: Path) -> Callable[..., Cell]:
    """``finished(*arguments)``: the cell and all that its run leaves. It is run once in all tests; the others get a copy."""

    def cell(*arguments: str) -> Cell:
        made = cell_of(*arguments)
        if not (_kept / made.name).exists():
            made.run()
            shutil.copytree(made.out, _kept / made.name)
        shutil.copytree(_kept / made.name, made.out, dirs_exist_ok=True)
        return made

    return cell


@pytest.fixture
def qdexp(
    small: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[..., tuple[int, str, str]]:
    """``qdexp(*arguments)``: ``python -m qdexp`` without a new process. Returns exit code, stdout and stderr."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "1")  # main() sets it; here it shall not outlive the test

    def run(*arguments: str) -> tuple[int, str, str]:
        flags = [argument for argument in arguments if argument.startswith("-")]
        options = [argument for argument in arguments if not argument.startswith("-")]
        monkeypatch.setattr(sys, "argv", ["qdexp", *flags, *_merged(small, options)])
        capsys.readouterr()
        code: str | int | None = None
        try:
            main()
        except SystemExit as stop:
            code = stop.code
        out, err = capsys.readouterr()
        return (1, out, err + code) if isinstance(code, str) else (code or 0, out, err)

    return run


@pytest.fixture
def drawn() -> dict[str, re.Pattern[str]]:
    """The lines of the tree that ``qdexp.layout`` draws, as patterns of the paths of files in an output folder."""
    found, places = dict[str, re.Pattern[str]](), list[tuple[int, str]]()
    for indent, line in re.findall(r"^( *)(\S+)(?:  |$)", str(layout.__doc__), flags=re.MULTILINE):
        while places and places[-1][0] >= len(indent):
            places.pop()
        path = (places[-1][1] if places else "") + line
        places.append((len(indent), path))
        pattern = re.sub(r"\b[A-Z]+", "[^/]+", re.escape(path).replace(r"\.\.\.", ".+"))
        found[path] = re.compile(pattern.removesuffix("/") + "(/.+)?" * path.endswith("/"))
    parents = {path for path in found for other in found if other != path and other.startswith(path)}
    return {path: pattern for path, pattern in found.items() if path not in parents}


@pytest.fixture
def executed(tmp_path: Path) -> Callable[..., list[str]]:
    """``executed()``: the entries that were made in ``tmp_path/out`` so far, in order; of another folder if it is named."""

    def entries(out: Path = tmp_path / "out") -> list[str]:
        log = out / "executions.jsonl"
        return [json.loads(line)["entry"] for line in log.read_text().splitlines()] if log.exists() else []

    return entries


def _merged(defaults: Sequence[str], arguments: Sequence[str]) -> list[str]:
    """``defaults`` that ``arguments`` do not set again, then ``arguments``: Hydra takes a group only once."""
    named = {argument.partition("=")[0] for argument in arguments}
    return [default for default in defaults if default.partition("=")[0] not in named] + list(arguments)
