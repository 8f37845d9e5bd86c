"""Command lines of real options and nonsense: they are planned, or refused in lines that say why, with an exit code."""

import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import TEXTS, examples

from qdexp import searchpath
from qdexp.cli import COMMANDS
from qdexp.config import Config
from qdexp.config.checks import _paths, schema_of

Qdexp = Callable[..., tuple[int, str, str]]

ELSEWHERE = ("out", "cluster.setup", "hydra.searchpath")
"""Options that lead to other folders."""
OPTIONS = [name for name in _paths(schema_of(Config), schema_of(Config)) if not name.startswith(ELSEWHERE)]
HYDRA = ("hydra.launcher.jobs", "hydra.job.chdir", "hydra/launcher", "hydra.sweeper.cells", "hydra.verbose", "hydra.nothing")
OPEN = ("quantizer.steps.weights.iterations", "quantizer.steps.mine", "metric.mine._target_", "quantizer.steps.act.range")
VALUES = (
    *("null", "true", "0", "1", "-1", "7", "4", "0.5", "1e400", ".inf", ".nan", "99999999999999999999", "auto", "none"),
    *("[]", "{}", "[1,28,28]", "[0,0,0]", "[1e9,1e9]", "{a: b}", "{_target_: os.system}", "{_target_: torch.nn.Linear}"),
    *("${seed}", "${oc.env:HOME}", "${nothing}", "${", "w4a8", "ptq", "tiny", "'quoted'", '"', "a,b", "1,2,3", "range(0,2)"),
    *("choice(a,b)", "glob(*)", "x y", "é", "torch.nn.Linear", "qdexp.methods.AdaRound", "nowhere.Mine", "builtins.exec"),
    *("..", "/", "int(7)", "sort(3,1)", "=", "~"),
)
WORDS = st.one_of(st.sampled_from(VALUES), st.sampled_from([text for text in TEXTS if "\0" not in text and text != "\ud800"]))


def choices() -> list[str]:
    """of each axis, and some that it has not; of models those that take no time."""
    named = {axis: [*searchpath.choices(axis, []), "nothing", "null", "", "7"] for axis in sorted(searchpath.axes())}
    named["model"] = ["tiny", "folder", "nothing", "null", ""]
    return [f"{axis}={choice}" for axis, found in named.items() for choice in found]


def arguments() -> st.SearchStrategy[list[str]]:
    """A few options; the names, the signs between and the values may be wrong."""
    names = st.one_of(st.sampled_from(OPTIONS), st.sampled_from([*HYDRA, *OPEN]))
    sign = st.sampled_from(["", "", "", "", "+", "++", "~"])
    option = st.builds("{}{}={}".format, sign, names, WORDS)
    choice = st.builds("{}{}".format, sign, st.sampled_from(choices()))
    bare = st.one_of(names, WORDS, st.just("--seed=7"), st.just("-x"))
    return st.one_of(st.lists(option, min_size=1, max_size=2), st.lists(st.one_of(option, choice), max_size=3), st.tuples(bare))


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("command")


def one_line(code: str | int | None, err: str) -> None:
    """How a command ends: well, or with lines that say why, of which none is a traceback's."""
    assert code in (None, 0, 1, 2)
    assert "Traceback" not in err
    assert bool(code) == bool(err), err
    assert not code or err.startswith(("qdexp: ", "usage: "))


@examples(25)
@given(given=arguments())
def test_any_options(qdexp: Qdexp, folder: Path, monkeypatch: pytest.MonkeyPatch, given: Sequence[str]) -> None:
    monkeypatch.chdir(folder)
    options = [one for one in given if one.partition("=")[0] not in ("-m", "out")]
    one_cell = [] if any("method=" in one for one in options) else ["method=ptq"]
    code, _, err = qdexp("-m", *one_cell, *options, f"out={folder / 'out'}", "hydra.launcher.dry=true")
    one_line(code, err)


@pytest.mark.slow
@examples(200)
@given(given=arguments())
def test_more_options(qdexp: Qdexp, folder: Path, monkeypatch: pytest.MonkeyPatch, given: Sequence[str]) -> None:
    """30 s."""
    test_any_options.hypothesis.inner_test(qdexp, folder, monkeypatch, given)  # type: ignore[attr-defined]


SUBCOMMANDS = (
    *("sweep status", "sweep logs", "sweep collect", "sweep cancel"),
    *("store du", "store verify", "store prune", "report", "wandb check"),
)


@pytest.mark.filterwarnings("ignore:.*found in sys.modules after import of package:RuntimeWarning")
@examples(40)
@given(
    command=st.sampled_from(SUBCOMMANDS),
    given=st.lists(st.one_of(WORDS, st.sampled_from(["--live", "-x", "--baseline"])), max_size=2),
)
def test_any_subcommand(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], command: str, given: Sequence[str]
) -> None:
    name, *rest = command.split()
    out = [] if name == "wandb" else ["--out", str(folder / "nowhere")]
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys, "argv", [f"qdexp {name}", *rest, *given, *out])
    code: str | int | None = None
    try:
        runpy.run_module(COMMANDS[name][0], run_name="__main__", alter_sys=True)
    except SystemExit as stop:
        code = stop.code
    err = capsys.readouterr().err
    one_line(1 if isinstance(code, str) else code, err + (code if isinstance(code, str) else ""))
