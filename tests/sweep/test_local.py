"""Several processes on one machine, and its GPUs, which need not be there: who gets which is known before any is used."""

import os
import sys
import time
from collections import defaultdict
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path

import cloudpickle  # type: ignore[import-untyped]
import pytest
import torch

from qdexp import device as devices
from qdexp.errors import UserError
from qdexp.layout import Layout
from qdexp.sweep.jobs import Job, Node
from qdexp.sweep.local import Local
from qdexp.sweep.manifest import Registry
from qdexp.sweep.shell import Shell, running


@dataclass
class Timed:
    """A job that tells when it ran, and on what."""

    folder: Path
    name: str
    gpu: str

    def __call__(self) -> None:
        start = time.monotonic()
        time.sleep(0.3)
        (self.folder / f"{self.name}.txt").write_text(f"{self.gpu} {start} {time.monotonic()}")


def test_no_gpu_has_two_jobs(tmp_path: Path) -> None:
    nodes = [Node(f"node-{number}", "samples", "cell", "samples", f"entry-{number}") for number in range(5)]
    (tmp_path / "ran").mkdir()

    def task(node: Node, _: Shell, gpu: str) -> Timed:
        return Timed(tmp_path / "ran", node.id, gpu)

    cloudpickle.register_pickle_by_value(sys.modules[__name__])  # a job's process has no tests to import
    with running(Layout(tmp_path).sweep("trial")) as shell:
        Local(Registry(tmp_path), "trial", 4, ["3", "GPU-5a"], task, shell).run(nodes)
    spans = defaultdict(list)
    for path in (tmp_path / "ran").iterdir():
        gpu, *times = path.read_text().split()
        spans[gpu].append([float(one) for one in times])
    assert sum(map(len, spans.values())) == 5
    assert spans.keys() == {"3", "GPU-5a"}
    for one in spans.values():
        assert all(before[1] <= after[0] for before, after in pairwise(sorted(one)))


def test_a_job_sees_its_gpu_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")  # as submitit leaves it
    node = Node("node", "samples", "cell", "samples", "entry")
    with pytest.raises(UserError, match="no such sweep"):
        Job(tmp_path, tmp_path, "trial", node, 1, gpu="GPU-5a")()
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "GPU-5a"


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
