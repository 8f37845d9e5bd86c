"""What `collect` does for cells whose jobs left no word."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qdexp.cell import Cell
from qdexp.layout import Layout
from qdexp.sweep import manifest
from qdexp.sweep.__main__ import main as sweep_command
from qdexp.sweep.launch import Frozen
from qdexp.sweep.results import say_how_to_load
from qdexp.sweep.shell import running
from qdexp.tracking.log import read


def runs(out: Path) -> list[Path]:
    return list(out.glob("wandb/offline-run-*/run-*.wandb"))


def test_a_killed_job_gets_its_record_and_its_run(
    cell_of: Callable[..., Cell], capsys: pytest.CaptureFixture[str]
) -> None:  # fmt: skip
    cell = cell_of("method=fp", "tracker=wandb")
    out, collect = cell.out, lambda: sweep_command(["collect", "--out", str(cell.out)])
    Frozen([cell]).write()
    node = manifest.read(out, "trial").nodes[0]
    with running(Layout(out).sweep("trial")) as shell:
        manifest.Registry(out).started(node.id, shell.name, out / "its.log", "trial")
        collect()
        assert not cell.record.exists()
    collect()
    record = json.loads(cell.record.read_text())
    assert record["status"] == "failed"
    assert record["error"]["type"] == "JobEnded"
    assert "its job ended as LOST, with its shell; its last words are in" in record["error"]["message"]
    (log,) = runs(out)
    run = read(log)
    assert (run.exit_code, run.summary["error_stage"], run.summary["status"]) == (1, "samples", "failed")
    written = cell.record.stat()
    collect()
    assert cell.record.stat() == written
    assert runs(out) == [log]  # what is told is not told again

    cell.run()
    collect()
    (log,) = runs(out)
    assert read(log).exit_code == 0
    assert f"record   {cell.record}" in capsys.readouterr().out


@pytest.mark.parametrize(("checkpoints", "told"), [
    ([], ""),
    ([None, None], ""),
    ([None, "store/act-1/checkpoint"], "checkpoint  results/store/act-1/checkpoint\n"),
    (["store/act-1/checkpoint", "store/act-2/checkpoint"], 'networks qdexp.load("CELL", out="results") in Python, CELL being'),
])  # fmt: skip
def test_the_last_lines_tell_where_quantized_networks_are(
    checkpoints: list[str | None], told: str, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [{} if folder is None else {"checkpoint": folder} for folder in checkpoints]
    say_how_to_load(Layout(Path("results")), [{"artifacts": artifacts} for artifacts in folders] + [{"status": "failed"}])
    printed = capsys.readouterr().out
    assert printed.startswith(told) and printed.count("\n") == bool(told)
