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


OWN = """
from dataclasses import dataclass
import torch
from qdexp.metrics.base import Metric
from qdexp.numbers import Number


@dataclass(frozen=True, kw_only=True)
class Darkness(Metric):
    numbers = (Number("darkness", "darkness of mine", shown=("overview", "bars")),)

    def measure(self, material):
        return {"darkness": torch.cat([255 - images.float().flatten(1).mean(1) for images in material.images()])}
"""


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


def test_a_metric_of_the_users_own_has_its_panels(
    qdexp: Callable[..., tuple[int, str, str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Of runs that were written by a process that knows it, to a dashboard that does not."""
    (tmp_path / "own_darkness.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    added = "+metric.darkness={_target_: own_darkness.Darkness}"
    code, _, err = qdexp("-m", "method=fp,ptq", "tracker=wandb", added)
    assert (code, err) == (0, "")
    sys.path.remove(str(tmp_path))
    del sys.modules["own_darkness"]
    script = runpy.run_path(str(SCRIPTS / "dashboard.py"))
    found = script["read_runs"](tmp_path / "out" / "wandb", "trial")
    known, panels = script["logged"](found), script["sections"](script["numbers_in"](found))
    assert len(found) == 2 and all(run.summary["darkness"] > 0 for run in found)
    assert [panel.title for panel in panels["Methods"]].count("darkness of mine") == 1
    assert {panel.title for panel in panels["What it costs"]} >= {"darkness of mine against stored MB", "FID against GBOPs"}
    for built in (script["report"]("trial", "p", "", panels), script["workspace"]("trial", "p", "", panels)):
        named = set(script["keys_of"](built._to_model().model_dump(mode="json")["spec"]))
        assert ("summary", "darkness") in named
        assert named <= known
