"""A module of the user's own as feature extractor."""

import shutil
import sys
from importlib import invalidate_caches
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra import compose, initialize_config_dir
from PIL import Image
from safetensors.torch import save_file

from qdexp.cell import Cell, preflight
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.metrics import build, own
from qdexp.metrics.extractors import find
from qdexp.metrics.features import extract
from qdexp.paths import conf_folder

NODE = {"_target_": "own_module.Means", "size": 8}
TYPED = "{_target_: own_module.Means, size: 8}"


@pytest.fixture(autouse=True)
def module(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The module's file, on the Python path."""
    monkeypatch.syspath_prepend(tmp_path / "mine")
    monkeypatch.delitem(sys.modules, "own_module", raising=False)
    (tmp_path / "mine").mkdir()
    path = Path(shutil.copy(Path(__file__).with_name("own_module.py"), tmp_path / "mine"))
    invalidate_caches()
    own._made.cache_clear()
    return path


def read_anew(module: Path, text: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """As another process would read the module, had it this text."""
    module.write_text(text)
    monkeypatch.delitem(sys.modules, "own_module")
    invalidate_caches()
    own._made.cache_clear()


def test_it_sees_images_at_its_size_with_three_channels_between_0_and_1() -> None:
    extractor = find(NODE)
    grey = torch.full((3, 1, 20, 12), 255, dtype=torch.uint8)
    white = extract(extractor, grey, 2, torch.device("cpu")).pool
    assert white.shape == (3, 4) and torch.equal(white[0], white[2])
    network: Any = extractor.build()
    torch.testing.assert_close(white[0], network.module.mix(torch.ones(3)))
    assert extractor.takes([1, 28, 28]) and extractor.takes([3]) and not extractor.takes([4, 8, 8])


def test_what_is_the_same_extractor(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Options, parameters and code count; comments, and where the weights lie, do not."""
    first = find(NODE).digest
    weights: Any = find(NODE).build()
    save_file(weights.module.state_dict(), tmp_path / "same.safetensors")
    torch.save(weights.module.state_dict(), tmp_path / "same.pt")
    save_file({**weights.module.state_dict(), "mix.bias": torch.ones(4)}, tmp_path / "other.safetensors")
    assert find(NODE, str(tmp_path / "same.safetensors")).digest == find(NODE, str(tmp_path / "same.pt")).digest == first
    others = [find({**NODE, "shift": 1.0}).digest, find(NODE, str(tmp_path / "other.safetensors")).digest]
    text = module.read_text()
    read_anew(module, f"# a comment\n{text}", monkeypatch)
    assert find(NODE).digest == first
    read_anew(module, text.replace("+ self.shift", "- self.shift"), monkeypatch)
    assert len({first, *others, find(NODE).digest}) == 4


@pytest.mark.parametrize(
    ("node", "told"),
    [
        ({"_target_": "own_module.Means"}, "protocol.extractor.size=None: give the pixels"),
        ({"_target_": "own_module.Means", "size": 0}, "protocol.extractor.size=0"),
        ({"size": 8}, "name a class of torch.nn.Module as _target_"),
        ({**NODE, "_target_": "own_module.Mean"}, "own_module.Mean: cannot be made"),
        ({**NODE, "heads": 2}, "unexpected keyword argument 'heads'"),
        ({**NODE, "_target_": "pathlib.Path"}, "name a class of torch.nn.Module"),
        ({**NODE, "size": 9}, r"fails on RGB images \[2, 3, 9, 9\]"),
        ({**NODE, "_target_": "own_module.Maps"}, r"returns float32 \[2, 3, 8, 8\] of 2 images"),
        ({**NODE, "shift": float("inf")}, "numbers that are not finite"),
    ],
)
def test_one_line_says_what_is_wrong(node: dict[str, Any], told: str) -> None:
    with pytest.raises(UserError, match=told) as error:
        find(node)
    assert str(error.value).startswith("protocol.extractor") and "\n" not in str(error.value)


def test_weights_that_do_not_fill_it_are_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"protocol.extractor_weights=nowhere: no such file"):
        find(NODE, "nowhere")
    save_file({"mix.weight": torch.ones(4, 3)}, tmp_path / "half.safetensors")
    (tmp_path / "torn.pt").write_bytes(b"PK")
    for name in ("half.safetensors", "torn.pt"):
        with pytest.raises(UserError, match=rf"protocol.extractor_weights=.*{name}: does not fill own_module.Means"):
            find(NODE, str(tmp_path / name))


def config(*options: str) -> Config:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return Config.of(compose("config", ["tracker=none", "device=cpu", "method=fp", "scale=smoke", *options]))


def reference(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, extractor: str) -> Path:
    """As the command makes it, of images in a folder."""
    (tmp_path / "images").mkdir(exist_ok=True)
    drawn = np.random.default_rng(0).integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    for number, image in enumerate(drawn):
        Image.fromarray(image).save(tmp_path / "images" / f"{number}.png")
    out = tmp_path / "reference.safetensors"
    arguments = ["build", str(tmp_path / "images"), "--size", "16", "--extractor", extractor, "--out", str(out)]
    monkeypatch.setattr("sys.argv", arguments)
    build.main()
    return out


def test_a_cell_is_scored_by_it(module: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made = reference(tmp_path, monkeypatch, TYPED)
    options = (f"protocol.extractor={TYPED}", f"protocol.reference={made}", f"out={tmp_path / 'out'}")
    record = preflight(config(*options)).run()
    assert record["metrics"]["fid"] > 0 and record["protocol"]["extractor"] == "own_module.Means"
    assert record["protocol"]["extractor_digest"] == find(NODE).digest
    with pytest.raises(UserError, match=r"measured with extractor own_module.Means .* choose a reference made with it"):
        preflight(config(f"protocol.extractor={TYPED[:-1]}, shift: 1.0}}", *options[1:]))
    key, keys, features = Cell(config(*options)).key, Cell(config(*options)).keys, "features_own_module.Means"
    read_anew(module, module.read_text().replace("+ self.shift", "- self.shift"), monkeypatch)
    changed = Cell(config(*options))
    assert changed.key != key and changed.keys["samples"] == keys["samples"] and changed.keys[features] != keys[features]
    with pytest.raises(UserError, match="choose a reference made with it"):
        preflight(config(*options))


def test_the_command_refuses_what_it_cannot_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for extractor, told in (("{_target_: own_module.Means", "cannot be read"), ("vgg", "there is none of this name")):
        with pytest.raises(SystemExit, match=told):
            reference(tmp_path, monkeypatch, extractor)
