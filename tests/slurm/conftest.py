"""One real Slurm for all tests of this folder. SLURM_TESTS: auto (skipped where its packages are missing), require, off."""

import os
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from lab import Lab, clean_environment, missing, remove_abandoned
from slurm_helpers import LARGEST_ARRAY
from trivial import Trivial

from qdexp.config import Cluster, Resources
from qdexp.sweep.jobs import Node
from qdexp.sweep.slurm import Slurm

MODE = os.environ.get("SLURM_TESTS", "auto")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        if Path(__file__).parent in item.path.parents:
            item.add_marker("slurm")


def _wanted() -> None:
    if MODE == "off":
        pytest.skip("SLURM_TESTS=off")
    if missing() and MODE != "require":
        pytest.skip(
            f"no Slurm here: {', '.join(missing())} missing; `python tests/slurm/lab/lab.py install` as root installs them"
        )
    assert not missing(), f"SLURM_TESTS=require, but {missing()} are missing"


@pytest.fixture(scope="session")
def session_lab() -> Iterator[Lab]:
    _wanted()
    remove_abandoned()
    lab = Lab(largest_array=LARGEST_ARRAY)
    yield lab
    lab.down()


def _enter(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in os.environ.keys() - clean_environment().keys():
        monkeypatch.delenv(name)  # pytest itself may run in a job
    for name in ("PATH", "SLURM_CONF"):
        monkeypatch.setenv(name, lab.environment[name])
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    monkeypatch.setenv("PYTHONPATH", str(Path(__file__).parent / "lab"))


@pytest.fixture
def lab(session_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The running cluster, empty before and after."""
    _enter(session_lab, monkeypatch)
    yield session_lab
    session_lab.reset()


@pytest.fixture
def lab_without_accounting(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    _wanted()
    lab = Lab(accounting=False)
    _enter(lab, monkeypatch)
    yield lab
    lab.down()


@pytest.fixture
def crowded(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A cluster that takes eight jobs."""
    _wanted()
    lab = Lab(accounting=False, most_jobs=8)
    _enter(lab, monkeypatch)
    yield lab
    lab.down()


@pytest.fixture
def roomy(monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """A cluster that takes twice the jobs that Slurm does by default."""
    _wanted()
    lab = Lab(accounting=False, most_jobs=20_000)
    _enter(lab, monkeypatch)
    yield lab
    lab.down()


CLUSTER = Cluster("lab", "cpu", parts=1, parallel=16, restarts=3, stages={"default": Resources(minutes=60)})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """Where trivial jobs leave their traces."""
    (tmp_path / "traces").mkdir()
    return tmp_path


@pytest.fixture
def slurm(place: Path) -> Callable[..., Slurm]:
    """``slurm(partition=..., sweep=..., **tasks)``: submits nodes whose tasks are trivial; ``tasks`` changes some."""

    def make(partition: str = "main", sweep: str = "trial", **tasks: Trivial) -> Slurm:
        def task(node: Node) -> Trivial:
            return replace(tasks.get(node.id, Trivial()), name=node.id, folder=str(place / "traces"))

        def done(node: Node) -> bool:
            return (place / "traces" / f"{node.id}.done").exists()

        return Slurm(place, sweep, replace(CLUSTER, partition=partition), task, done)

    return make


@pytest.fixture
def traces(place: Path) -> Callable[[str], int]:
    """``traces(node)``: how often its job was started; -1 where it has not succeeded."""

    def count(node: str) -> int:
        started = len(list((place / "traces").glob(f"{node}.started-*")))
        return started if (place / "traces" / f"{node}.done").exists() else -started - 1

    return count
