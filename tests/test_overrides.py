"""Mistakes on the command line, and files of the user's own that are called like ours."""

import shlex
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

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
        "++hydra.searchpath=['file://.','file://mine']",
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
    overrides.check([f"hydra.searchpath=[file://{conf_folder()}]", "hydra.searchpath=[]"])


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


MISTAKES = {
    "-m quant=w8a8, w4a8": "quant=w8a8, w4a8: no space beside a comma or an equals sign: quant=w8a8,w4a8",
    "-m quant=w8a8 , w4a8 seed=1": "quant=w8a8 , w4a8: no space beside a comma or an equals sign: quant=w8a8,w4a8",
    "quant = w8a8": "quant = w8a8: no space beside a comma or an equals sign: quant=w8a8",
    "-m seed=0, method=ptq": "seed=0,: ends in a comma; leave it out: seed=0",
    "w8a8": "w8a8: name its axis too: quant=w8a8",
    "none": "none: name its axis too: quantizer=none or tracker=none",
    "quant": "quant: give a choice, quant=NAME; there are fp8, fp8_block128, ",
    "W8A9": "W8A9: is no option, did you mean quant=w8a8?; give KEY=VALUE, ",
    "'' seed=1": "'': is no option; give KEY=VALUE, ",
    "=x": "=x: is no option; give KEY=VALUE, ",
    "seed=1;2": "seed=1;2: cannot be read (token recognition error at: ';'); texts with such signs stand in quotes: ",
    "quant=null": "quant=null: name a choice, or leave it out",
    "quant=w8a8 quant=w4a8": "quant=w8a8 quant=w4a8: quant is given twice; name one choice, or several by quant=ONE,OTHER",
    "SEED=1": "SEED: there is no such option, did you mean seed?; there are model, quant, ",
    "timesteps=4": "timesteps: there is no such option, did you mean calib.timesteps?; there are model, quant, ",
    "quant.wieght_bits=4": "quant.wieght_bits: there is no such option, did you mean weight_bits?; there are weight_bits, ",
    "seed.first=1": "seed.first: seed is a single value and has no options of its own",
    "hydra.serachpath=[x]": "hydra.serachpath: there is no such option, did you mean searchpath?; ",
    "hydra.searchpath=[file:///no/where]": "hydra.searchpath: file:///no/where: no such folder; give file:///PATH of a folder ",
    "hydra.searchpath=[pkg://no.where]": "hydra.searchpath: pkg://no.where: no such package; give ",
    "--config-dir /no/where": "--config-dir /no/where: no such folder; give ",
    "out=~/mine": "out=~/mine: nothing expands ~ there; give the whole path, or $HOME",
    "--out mine": "--out: options have no dashes here: out=VALUE",
    "--jobs=4": "--jobs=4: there is no such flag; python -m qdexp --help lists the options",
    "--mulitrun": "--mulitrun: there is no such flag, did you mean --multirun?; ",
}


@pytest.mark.parametrize("line", MISTAKES)
def test_a_slip_is_told_with_what_was_meant(line: str) -> None:
    assert refused(*shlex.split(line.replace(";", r"\;"))).startswith(MISTAKES[line])


@pytest.mark.parametrize(
    ("option", "read"),
    [
        ("sweep=2026_11_28", "2026_11_28"),
        ("sweep=1e3", "1e3"),
        ("sweep=true", "true"),
        ("sweep=ü", "ü"),
        ("sweep='a b'", "a b"),
        ("model.weights=/a (1)/b.safetensors", "/a (1)/b.safetensors"),
        ("+model.prompts=a;b", "a;b"),
        ("out=a=b", "a=b"),
        ("tracker.entity=null", None),
        ("seed=1_0", 10),
    ],
)
def test_text_is_taken_as_it_is_typed(option: str, read: object) -> None:
    overrides.check([option])
    (arranged,) = overrides.arranged([option])
    assert OverridesParser.create().parse_override(arranged).value() == read


@pytest.mark.parametrize("given", ["--info defaults", "-i seed=1", "--cfg job", "-cn config", "+experiment=bits -m", "~seed"])
def test_what_hydra_takes_stays_free(given: str) -> None:
    overrides.check(given.split())


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ("~model=0", "a cell needs a choice along each axis; name another, model=NAME"),
        ("~hydra/launcher", "a cell needs a choice along each axis; name another, hydra/launcher=NAME"),
        ("hydra/launcher=null", "name a choice; python -m qdexp --hydra-help lists them"),
    ],
)
def test_choices_that_hydra_would_end_in_a_traceback_at(given: str, said: str) -> None:
    assert refused(given) == f"{given}: {said}"
