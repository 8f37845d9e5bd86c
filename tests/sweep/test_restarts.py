"""Jobs of a cluster that reach their minutes, without a cluster."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
from processes import PROCESSES

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.layout import Layout
from qdexp.sweep import jobs
from qdexp.sweep.jobs import Job, Node
from qdexp.sweep.launch import Frozen
from qdexp.sweep.manifest import Registry
from qdexp.sweep.restarts import Start, there, warning

ENTRY = "weights-0123456789abcdef"
NODE = Node(ENTRY, "weights", "cell", "weights", ENTRY)


@pytest.fixture
def job(tmp_path: Path) -> Job:
    return Job(Path("out"), tmp_path, "trial", NODE, threads=1, minutes=60)


def started(job: Job, minutes_ago: float, monkeypatch: pytest.MonkeyPatch) -> Layout:
    layout = Layout(job.cwd / job.out)
    layout.work(ENTRY).mkdir(parents=True, exist_ok=True)
    (layout.work(ENTRY) / "block-0").touch()
    start = Start(time.monotonic() - 60 * minutes_ago, there(layout, ENTRY))
    monkeypatch.setitem(jobs._started, ENTRY, start)
    layout.begun(ENTRY, "whole").touch()  # as a start itself leaves it
    return layout


def test_a_job_that_got_nowhere_in_its_minutes_is_not_started_again(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    started(job, 59, monkeypatch)
    with pytest.raises(UserError, match=r"^cluster\.stages\.weights\.minutes=60: no block or shard was finished in them"):
        job.checkpoint()


def test_one_that_got_on_or_was_preempted_is(job: Job, monkeypatch: pytest.MonkeyPatch) -> None:
    started(job, 30, monkeypatch)
    assert job.checkpoint().function == job
    layout = started(job, 59, monkeypatch)
    (layout.work(ENTRY) / "block-1").touch()
    assert job.checkpoint().function == job
    started(job, 59, monkeypatch)
    layout.executions.write_text("another stage of the same job\n")
    assert job.checkpoint().function == job
    started(replace(job, minutes=0), 10**6, monkeypatch)
    assert replace(job, minutes=0).checkpoint().function == replace(job, minutes=0)


@pytest.mark.parametrize(("minutes", "seconds"), [(10, 60), (12, 72), (15, 90), (1440, 90)])
def test_the_warning_follows_from_the_minutes(minutes: int, seconds: int) -> None:
    assert warning(minutes) == seconds


def test_a_job_that_is_killed_in_its_imports_says_so(job: Job, tmp_path: Path) -> None:
    (tmp_path / "torch.py").write_text("import os, signal\nos.kill(os.getpid(), signal.SIGKILL)\n")
    code = f"from qdexp.sweep.jobs import *; from pathlib import PosixPath; {job!r}()"
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    done = subprocess.run([sys.executable, "-c", code], env=os.environ | {"PYTHONPATH": path})
    assert done.returncode == -signal.SIGKILL
    error = Registry(tmp_path / "out").error(ENTRY)
    assert error["type"] == "CutDown"
    assert error["message"].startswith(
        "it was ended while it loaded its code; if that took its 60 minutes, raise cluster.stages"
    )


def warned_as_it_ends(job: Job) -> None:
    signal.signal(signal.SIGUSR2, signal.SIG_DFL)  # as Python leaves it where it ends
    job()
    os.kill(os.getpid(), signal.SIGUSR2)


def test_a_warning_after_the_work_is_done_does_no_harm(cell_of: Callable[..., Cell], tmp_path: Path) -> None:
    """The job would count as failed, and those that need it would be cancelled."""
    sweep = Frozen([cell_of("method=fp", "protocol.steps=2")])
    sweep.write()
    process = PROCESSES.Process(target=warned_as_it_ends, args=(sweep.job(sweep.nodes[0]),))
    process.start()
    process.join(120)
    assert process.exitcode == 0
    assert sweep.done(sweep.nodes[0])


def test_too_few_minutes_are_refused(cell_of: Callable[..., Cell]) -> None:
    with pytest.raises(UserError, match=r"^cluster\.stages\.default\.minutes=9: .*at least 10"):
        cell_of("cluster.stages.default.minutes=9")
