"""Shells that are killed while they submit to a real Slurm."""

import multiprocessing
import os
import signal
import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from slurm_helpers import nodes
from submitit.core.utils import JobPaths

from qdexp.layout import Layout
from qdexp.sweep import manifest, queue, submissions
from qdexp.sweep.slurm import Slurm

MakeSlurm = Callable[..., Slurm]
GRAPH = nodes(shared=[], a0=["shared"], a1=["shared"], a2=["shared"])


@pytest.fixture
def held(lab: Lab) -> Any:
    """Jobs wait until ``held()`` is called."""
    lab.run("scontrol", "update", "partitionname=main", "state=down")
    yield lambda: lab.run("scontrol", "update", "partitionname=main", "state=up")
    lab.run("scontrol", "update", "partitionname=main", "state=up")


def dies(*_: object, **__: object) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


def killed(slurm: Slurm, owner: Any, name: str, call: int) -> None:
    """A shell of its own submits the graph and is killed at the nth call of a method."""
    real, calls = getattr(owner, name), 0

    def counted(*arguments: Any, **options: Any) -> Any:
        nonlocal calls
        calls += 1
        return dies() if calls == call else real(*arguments, **options)

    def submit() -> None:
        setattr(owner, name, counted)
        slurm.submit(GRAPH)

    shell = multiprocessing.get_context("fork").Process(target=submit)
    shell.start()
    shell.join(60)
    assert shell.exitcode == -signal.SIGKILL


POINTS = {
    "before sbatch": (subprocess, "Popen", 4),  # after squeue, scontrol and the sbatch of the first job
    "before the tasks are told": (JobPaths, "move_temporary_file", 4),
    "between the tasks": (JobPaths, "move_temporary_file", 6),
    "before the first is registered": (manifest.Registry, "submitted", 2),
    "before the last is registered": (manifest.Registry, "submitted", 4),
}


@pytest.mark.parametrize("point", POINTS)
def test_what_a_killed_shell_has_submitted_is_found_again(
    lab: Lab, held: Callable[[], None], slurm: MakeSlurm, traces: Callable[[str], int], place: Path, point: str
) -> None:
    killed(slurm(), *POINTS[point])
    left = set(queue.queue())
    slurm().submit(GRAPH)
    assert left <= set(queue.queue())
    assert bool(Layout(place).all_submitting()) == (point == "before sbatch")  # which may have outlived its shell
    registry = manifest.Registry(place)
    waiting = {job for job, state in queue.queue().items() if state in queue.LIVE}
    assert {registry.job(node.id)["id"] for node in GRAPH} == waiting
    assert len(waiting) == 4
    held()
    lab.drained()
    assert [traces(node.id) for node in GRAPH] == [1] * 4


def test_what_a_killed_shell_has_submitted_can_be_cancelled(lab: Lab, held: Callable[[], None], slurm: MakeSlurm) -> None:
    one = slurm()
    killed(one, *POINTS["before the first is registered"])
    assert submissions.cancel(one.registry.layout, "another") == 0
    assert submissions.cancel(one.registry.layout, "trial") == 3
    assert len([job for job, state in queue.queue().items() if state in queue.LIVE]) == 1  # which is registered
    assert submissions.cancel(one.registry.layout, "trial") == 0


def test_jobs_that_arrive_late_are_cancelled_where_others_do_their_work(
    lab: Lab, held: Callable[[], None], slurm: MakeSlurm, traces: Callable[[str], int], place: Path
) -> None:
    """An sbatch goes on when its shell is killed, and may reach the controller after the next shell has looked."""
    one = slurm()
    one.registry.layout.jobs.mkdir()
    submission, note = submissions.begin(one.registry.layout, "trial", "a", ["a0"])
    one.submit(GRAPH)
    assert note.exists()
    wrap = ["sbatch", f"--job-name={submission.name}", "--wrap=sleep 60", "--output=/dev/null"]
    subprocess.run(wrap, check=True, capture_output=True)
    assert one.submit(GRAPH) == []
    held()
    lab.drained()
    assert [traces(node.id) for node in GRAPH] == [1] * 4
    assert not note.exists()


def test_what_the_queue_never_knew_is_forgotten_after_a_while(lab: Lab, slurm: MakeSlurm, place: Path) -> None:
    layout = Layout(place)
    layout.jobs.mkdir()
    _, young = submissions.begin(layout, "trial", "a", ["a0"])
    _, old = submissions.begin(layout, "trial", "a", ["a1"])
    os.utime(old, (1e9, 1e9))
    layout.submitting("other").write_text("[]")
    assert submissions.orphans(layout) == {}
    assert young.exists() and not old.exists()
