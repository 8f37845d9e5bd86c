"""Several processes on one machine, and its GPUs, which need not be there: who gets which is known before any is used."""

import os
import sys
from collections import defaultdict
from collections.abc import Callable, Sequence
from itertools import pairwise
from pathlib import Path

import pytest
import torch

from qdexp import device as devices
from qdexp.layout import Layout
from qdexp.sweep.jobs import Node
from qdexp.sweep.local import Local
from qdexp.sweep.manifest import Registry
from qdexp.sweep.process import Task
from qdexp.sweep.shell import Shell, running

TASKS = """\
import os
import signal
import sys
import time
from dataclasses import dataclass
from pathlib import Path


@dataclass
class Task:
    folder: Path
    name: str

    def __call__(self):
        start = time.monotonic()
        print(f"this is {self.name}")
        if self.name == "killed":
            os.kill(os.getpid(), signal.SIGKILL)
        if self.name == "broken":
            raise ValueError("it is broken")
        time.sleep(0.3)
        gpu = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
        (self.folder / f"{self.name}.txt").write_text(f"{gpu} {os.getpid()} {start} {time.monotonic()}")
"""
Tasks = Callable[[Node, Shell], Task]


@pytest.fixture
def tasks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Tasks:
    """Jobs that tell when they ran, in which process and on what, or that fail; a process of this machine can import them."""
    (tmp_path / "tasks.py").write_text(TASKS)
    (tmp_path / "ran").mkdir()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")])))
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "tasks", raising=False)
    module = __import__("tasks")
    return lambda node, _: module.Task(tmp_path / "ran", node.id)


def node(name: str, *needs: str) -> Node:
    return Node(name, "samples", "cell", "samples", f"entry-{name}", needs)


def run(folder: Path, tasks: Tasks, gpus: Sequence[str], nodes: Sequence[Node]) -> dict[str, bool]:
    """Runs at most four at once. Returns which nodes have ended, and whether they failed."""
    ended: dict[str, bool] = {}
    with running(Layout(folder).sweep("trial")) as shell:
        local = Local(Registry(folder), "trial", 4, gpus, tasks, shell, lambda one, failed: ended.update({one.id: failed}))
        local.run(nodes)
    return ended


def test_no_gpu_has_two_jobs_and_each_a_process_of_its_own(tmp_path: Path, tasks: Tasks) -> None:
    nodes = [node(f"node-{number}") for number in range(5)]
    assert run(tmp_path, tasks, ["3", "GPU-5a"], nodes) == dict.fromkeys((one.id for one in nodes), False)
    spans, processes = defaultdict(list), defaultdict(set)
    for path in (tmp_path / "ran").iterdir():
        gpu, process, *times = path.read_text().split()
        spans[gpu].append([float(one) for one in times])
        processes[gpu].add(process)
    assert sum(map(len, spans.values())) == 5
    assert spans.keys() == {"3", "GPU-5a"}
    for one in spans.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(one)))
    assert [len(own) for own in processes.values()] == [1, 1]  # that does one job after another


def test_a_job_that_fails_or_is_killed_takes_nothing_with_it_but_what_needs_it(
    tmp_path: Path, tasks: Tasks, capsys: pytest.CaptureFixture[str]
) -> None:
    nodes = [node("broken"), node("killed"), node("lost", "broken"), node("last", "lost"), *map(node, ("one", "two", "three"))]
    ended = run(tmp_path, tasks, [""], nodes)
    assert ended == {"broken": True, "killed": True, "one": False, "two": False, "three": False}
    processes = {path.read_text().split()[1] for path in (tmp_path / "ran").iterdir()}
    assert len(processes) == 1  # another one than that which was killed
    logs = {name: (tmp_path / "jobs" / "logs" / name / "log.txt").read_text() for name in ended}
    assert all(text.startswith(f"this is {name}\n") for name, text in logs.items() if name != "killed")
    assert logs["broken"].endswith("ValueError: it is broken\n")
    assert {name: Registry(tmp_path).job(name).get("state") for name in ("broken", "killed", "one")} == {
        "broken": "FAILED",
        "killed": "FAILED",
        "one": None,
    }
    out, err = capsys.readouterr()
    assert "7/7 jobs" in out and "killed  failed: its process was killed" in out and err == ""


@pytest.mark.parametrize(
    ("variable", "found"),
    [
        (None, ["0", "1"]),
        ("", ["0", "1"]),
        ("2,3", ["2", "3"]),
        ("GPU-5a, GPU-77", ["GPU-5a", "GPU-77"]),
        ("4,5,-1,6", ["4", "5"]),
    ],
)
def test_gpus_are_called_as_the_variable_calls_them(
    variable: str | None, found: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """CUDA takes those that come before the first one that it does not know."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    if variable is None:
        monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    else:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", variable)
    assert devices.visible() == found
