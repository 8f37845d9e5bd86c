"""The W&B dashboard names no key that a real sweep's runs do not hold."""

import runpy
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdexp.errors import UserError

SCRIPTS = Path(__file__).parents[2] / "analysis"


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("dashboard")


@pytest.fixture
def runs(qdexp: Callable[..., tuple[int, str, str]], folder: Path) -> Path:
    """The offline runs of a real sweep: full precision and one method. Run once."""
    if not (folder / "out" / "wandb").exists():
        code, _, err = qdexp("-m", "method=fp,ptq", "tracker=wandb", "inspection.rows=4", f"out={folder / 'out'}")
        assert (code, err) == (0, "")
    return folder / "out" / "wandb"


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., tuple[int, str]]:
    """``dashboard(*arguments, **changes)``: exit code and output, with some of the script's names changed."""

    def run(*arguments: str | Path, **changes: Any) -> tuple[int, str]:
        script = runpy.run_path(str(SCRIPTS / "dashboard.py"))
        script["main"].__globals__.update(changes)
        monkeypatch.setattr(sys, "argv", ["dashboard.py", *map(str, arguments)])
        capsys.readouterr()
        return script["main"](), capsys.readouterr().out

    return run


def test_every_key_is_found(dashboard: Callable[..., tuple[int, str]], runs: Path) -> None:
    assert dashboard("trial", "--runs", runs) == (0, "11 panels, every key found in 2 runs\n")


def test_a_key_that_no_run_holds_is_named(dashboard: Callable[..., tuple[int, str]], runs: Path) -> None:
    code, said = dashboard("trial", "--runs", runs, COLUMNS=("phase",), CURVES={"orbit": "o"})
    assert code == 1
    for key in ("config key phase", "history key curves/orbit"):
        assert f"no run has the {key}:" in said


def test_a_torn_run_is_named(dashboard: Callable[..., tuple[int, str]], runs: Path, tmp_path: Path) -> None:
    log = next(runs.glob("offline-run-*/run-*.wandb"))
    torn = tmp_path / log.parent.name / log.name
    torn.parent.mkdir()
    torn.write_bytes(log.read_bytes()[:-3])
    with pytest.raises(UserError, match=r"offline-run-\S+: .*; remove it and run its sweep again"):
        dashboard("trial", "--runs", tmp_path)


def test_another_sweep_has_no_dashboard_of_these_runs(dashboard: Callable[..., tuple[int, str]], runs: Path) -> None:
    with pytest.raises(SystemExit):
        dashboard("other", "--runs", runs)
