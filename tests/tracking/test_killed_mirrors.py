"""What kills of a cell and of its mirror leave: never a run that is torn or twice, and the next start makes it whole."""

import multiprocessing
import os
import shutil
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from processes import Python

from qdexp import files
from qdexp.layout import Layout
from qdexp.tracking.log import Run, read
from qdexp.tracking.mirror import mirror, written
from qdexp.tracking.sync import check, runs_in

Record = dict[str, Any]
EntryOf = Callable[[Path, dict[str, bytes]], list[Path]]

POINTS = {
    "before W&B begins": ("wandb", "init", 1, False),
    "as W&B has begun": ("wandb", "init", 1, True),
    "between rows of the history": ("Run", "log", 2, True),
    "before the checkpoint": ("Run", "log_artifact", 1, False),
    "before the summary": ("Summary", "update", 1, False),
    "before the end": ("Run", "finish", 1, False),
    "before the log is closed": ("wandb", "teardown", 1, False),
    "as the log is closed": ("wandb", "teardown", 1, True),
    "before the older run is removed": ("shutil", "rmtree", 1, False),
    "before the run has its place": ("Path", "rename", 1, False),
    "as the run has its place": ("Path", "rename", 1, True),
}
"""Whose method, its name, which call of it, and whether that is done before the kill."""
LAST = "as the run has its place"


def killed(point: str, record: Record, out: Path) -> None:
    """A process mirrors the record and is killed."""
    import wandb

    owners = {"wandb": wandb, "Run": wandb.Run, "Summary": wandb.sdk.wandb_summary.Summary, "shutil": shutil, "Path": Path}
    owner, name, number, after = POINTS[point]
    real, calls = getattr(owners[owner], name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == number and not after:
            os.kill(os.getpid(), signal.SIGKILL)
        result = real(*arguments, **options)
        if calls == number:
            os.kill(os.getpid(), signal.SIGKILL)
        return result

    def die() -> None:
        setattr(owners[owner], name, counted)
        mirror(record, "sweep", out, "project", "offline", None, out=out)

    process = multiprocessing.get_context("fork").Process(target=die)
    process.start()
    process.join(60)
    assert process.exitcode == -signal.SIGKILL, point


def runs(out: Path) -> list[Run]:
    """What a sync would read: all of it whole."""
    found = runs_in(Layout(out).wandb)
    assert [check(folder).problems for folder in found] == [[]] * len(found)
    return [read(log) for folder in found for log in folder.glob("*.wandb")]


def rows(run: Run) -> list[dict[str, Any]]:
    """The history, without what W&B adds by itself."""
    return [{name: value for name, value in row.items() if not name.startswith("_")} for row in run.history]


def test_a_mirror_that_is_killed_anywhere_is_repeated_whole(record: Record, tmp_path: Path, entry: EntryOf) -> None:
    """Of a record that has grown since the last mirror."""
    folder = tmp_path / record["artifacts"]["checkpoint"]
    record["keys"]["layers"] = "e" * 16
    entry(folder.parent, {f"{folder.name}/checkpoint.json": b"{}"})
    entry(tmp_path / "store" / f"layers-{'e' * 16}", {"layers.json": b'[{"name": "conv_in", "error": 1.5}]'})
    mirror(record, "sweep", tmp_path, "project", "offline", None, out=tmp_path)
    history = rows(*runs(tmp_path))
    for number, point in enumerate(POINTS):
        before, start = record["metrics"]["fid"], time.time()
        record["metrics"]["fid"] = float(number)
        killed(point, record, tmp_path)
        left = [run.summary["fid"] for run in runs(tmp_path)]
        assert left in ([before], []) if point != LAST else left == [number], point
        assert (written(tmp_path, "sweep", record["cell"]) > start) == (point == LAST), point  # or nobody would repeat it
        mirror(record, "sweep", tmp_path, "project", "offline", None, out=tmp_path)
        (run,) = runs(tmp_path)
        assert (run.summary["fid"], rows(run)[:-1]) == (number, history[:-1]), point  # the last names the file of a table
        assert len(list((tmp_path / ".wandb-data").iterdir())) == 1
    shutil.rmtree(tmp_path / "wandb")
    mirror(record, "sweep", tmp_path, "project", "offline", None, out=tmp_path)
    assert not [path for path in (tmp_path / ".wandb-parts").iterdir() if path.suffix != ".lock"]


def test_two_mirrors_at_once_leave_one_run(record: Record, tmp_path: Path) -> None:
    context = multiprocessing.get_context("fork")
    arguments = (record, "sweep", tmp_path, "project", "offline", None)
    processes = [context.Process(target=mirror, args=arguments) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0, 0]
    (run,) = runs(tmp_path)
    assert (run.summary["fid"], len(run.history)) == (record["metrics"]["fid"], 3)


@pytest.mark.slow
def test_a_cell_that_is_killed_continues_its_run(small: list[str], tmp_path: Path) -> None:
    """In a stage, then in the mirroring; then it is started once more, and once more when all is done. 30 s."""
    options = [option for option in small if not option.startswith("tracker=")]
    command = ["-m", "qdexp", *options, "method=ptq", "tracker=wandb", "inspection.rows=4"]
    out = tmp_path / "out"
    for made in ("store/.work-weights-*/.begun-*", ".wandb-parts/*/wandb/offline-run-*/run-*.wandb"):
        cell = Python(command, tmp_path)
        while not list(out.glob(made)):
            assert cell.poll() is None, made
            time.sleep(0.01)
        cell.send_signal(signal.SIGKILL)
        assert cell.wait().returncode == -signal.SIGKILL
        assert runs(out) == []
    for _ in range(2):
        assert Python(command, tmp_path).wait().returncode == 0
        (path,) = (out / "records").iterdir()
        record = files.read_sealed(path)
        (run,) = runs(out)
        assert (run.run.display_name, run.exit_code) == (record["cell"], 0)
        assert {name: run.summary[name] for name in record["metrics"]} == record["metrics"]
        steps = [row["curves/sampler_step"] for row in run.history if "curves/sampler_step" in row]
        assert steps == list(range(len(record["curves"]["timestep"])))
        assert [sum(name in row for row in run.history) for name in ("samples.path", "layers.path")] == [1, 1]
