"""The W&B dashboard shows whatever a real sweep's runs hold, and names no key that they do not."""

import json
import re
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
    code, said = dashboard("trial", "--runs", runs)
    assert (code, re.sub(r"^\d+", "N", said)) == (0, "N panels, every key found in 2 runs\n")


def built(script: dict[str, Any], panels: dict[str, list[Any]]) -> set[tuple[str, str]]:
    """The keys that report and workspace name; both name the same."""
    named = []
    for make in ("report", "workspace"):
        model = script[make]("trial", "p", "", panels)._to_model().model_dump(mode="json")
        named.append(set(script["keys_of"](model["spec"])))
    assert named[0] == named[1]
    return named[0]


def test_whatever_the_records_hold_has_a_panel_and_each_panel_has_keys(runs: Path) -> None:
    script = runpy.run_path(str(SCRIPTS / "dashboard.py"))
    found = script["read_runs"](runs, "trial")
    panels, known = script["sections"](found), script["logged"](found)
    named = built(script, panels)
    assert named <= known
    records = [json.loads(path.read_text()) for path in (runs.parent / "records").iterdir()]
    held = {key for record in records for key, value in record["metrics"].items() if value is not None}
    held |= {f"coverage_{of}_{bits}" for record in records for of in ("macs", "parameters") for bits in
             record.get("coverage", {}).get(of, {})}  # fmt: skip
    held |= {f"{stage}_seconds" for record in records for stage in record["stages"]}
    assert {"coverage_macs_w4a8", "weights_seconds", "act_seconds"} <= held
    assert {("summary", key) for key in held} <= named
    assert {("history", f"curves/{name}") for name in ("timestep", "teacher_forced", "free_running")} <= named
    assert {("config", "sweep"), ("config", "row"), ("config", "steps"), ("config", "method"), ("history", "samples")} <= named
    for name, drawn in panels.items():
        for panel in drawn:
            assert set(script["keys_of"](panel._to_model().model_dump(mode="json"))), (name, panel)


def test_a_key_that_no_run_holds_is_named(dashboard: Callable[..., tuple[int, str]], runs: Path) -> None:
    script = runpy.run_path(str(SCRIPTS / "dashboard.py"))
    forgotten = {("summary", "fid"), ("config", "row"), ("history", "curves/timestep"), ("history", "samples")}
    code, said = dashboard("trial", "--runs", runs, logged=lambda found: script["logged"](found) - forgotten)
    assert code == 1
    for kind, key in forgotten - {("history", "samples")}:
        assert f"no run has the {kind} key {key}:" in said


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
    known, panels = script["logged"](found), script["sections"](found)
    assert len(found) == 2 and all(run.summary["darkness"] > 0 for run in found)
    assert [panel.title for panel in panels["Methods"]].count("darkness of mine") == 1
    assert {panel.title for panel in panels["What it costs"]} >= {"darkness of mine against stored MB", "FID against GBOPs"}
    named = built(script, panels)
    assert ("summary", "darkness") in named
    assert named <= known
