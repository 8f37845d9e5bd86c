"""Files of the user's own that are called like ours."""

import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from qdexp import overrides
from qdexp.errors import UserError
from qdexp.models.__main__ import main as describe
from qdexp.paths import conf_folder

PLACES = ["model/ddpm_fashion.yaml", "method/ptq.yaml", "experiment/bits.yaml", "sampler/ddim.yaml", "config.yaml"]


@pytest.fixture
def mine(tmp_path: Path) -> Callable[[str], Path]:
    """``mine(place)``: a folder of configs that has another file of this name; a package too."""

    def folder(place: str) -> Path:
        path = tmp_path / "mine" / place
        path.parent.mkdir(parents=True)
        path.write_text("beta_end: 0.2\n")
        (tmp_path / "mine" / "__init__.py").write_text("")
        return tmp_path / "mine"

    return folder


def refused(*arguments: str) -> str:
    with pytest.raises(UserError) as caught:
        overrides.check(arguments)
    text = str(caught.value)
    assert "\n" not in text
    return text


@pytest.mark.parametrize("place", PLACES)
def test_a_file_that_would_be_ignored_is_refused_with_both_names(mine: Callable[[str], Path], place: str) -> None:
    folder = mine(place)
    text = refused("model=ddpm_fashion", f"hydra.searchpath=[file://{folder}]")
    assert text == (f"hydra.searchpath: {folder / place} would be ignored, since {conf_folder() / place} has its name; "
                    f"rename it")  # fmt: skip


@pytest.mark.parametrize(
    "form",
    [
        "hydra.searchpath=[pkg://mine]",
        "hydra.searchpath=[file://mine]",
        "hydra.searchpath=[mine]",
        "++hydra.searchpath=['file://jobs','file://mine']",
        "hydra.searchpath=['file://${oc.env:HERE}/mine']",
        "--config-dir=mine",
        "--config-dir mine",
        "-cd mine",
    ],
)
def test_every_way_to_name_a_folder(
    mine: Callable[[str], Path], form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    mine(PLACES[0])
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("HERE", str(tmp_path))
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    assert f"mine/{PLACES[0]} would be ignored" in refused(*form.split(" "))


def test_several_are_counted(mine: Callable[[str], Path]) -> None:
    folder = mine(PLACES[0])
    (folder / "config.yaml").write_text("seed: 1")
    assert "has its name; so would 1 more; rename it" in refused(f"hydra.searchpath=[file://{folder}]")


def test_names_of_ones_own_and_equal_copies_are_free(tmp_path: Path) -> None:
    shutil.copytree(conf_folder(), tmp_path / "copy")
    shutil.copyfile(conf_folder() / PLACES[0], tmp_path / "copy/model/mine.yaml")
    overrides.check([f"hydra.searchpath=[file://{tmp_path / 'copy'}]"])
    overrides.check([f"hydra.searchpath=[file://{conf_folder()}]", "hydra.searchpath=[file:///nowhere,pkg://no.where]"])


@pytest.mark.parametrize("flags", [(), ("-m",), ("--cfg=job",)])
def test_the_command_says_so_before_hydra_composes(
    qdexp: Callable[..., tuple[int, str, str]], mine: Callable[[str], Path], flags: tuple[str, ...], tmp_path: Path
) -> None:
    code, out, err = qdexp(*flags, f"hydra.searchpath=[file://{mine(PLACES[0])}]")
    assert (code, out) == (1, "")
    assert err.startswith("qdexp: hydra.searchpath: ")
    assert not (tmp_path / "out").exists()


def test_the_description_of_a_model_says_so_too(mine: Callable[[str], Path]) -> None:
    with pytest.raises(SystemExit, match=r"^qdexp: hydra\.searchpath: .*would be ignored"):
        describe([f"hydra.searchpath=[file://{mine(PLACES[0])}]", "model=ddpm_fashion"])
