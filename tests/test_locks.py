"""Locks between real processes, on file systems with and without them."""

import errno
import fcntl
import multiprocessing
import os
import signal
import time
from collections.abc import Callable, Iterator
from multiprocessing.context import ForkProcess
from multiprocessing.synchronize import Event
from pathlib import Path

import pytest

from qdexp import locks

PROCESSES = multiprocessing.get_context("fork")


@pytest.fixture(autouse=True)
def _quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(locks, "BEAT", 0.1)
    monkeypatch.setattr(locks, "SILENCE", 1.0)
    monkeypatch.setattr(locks, "POLL", 0.01)


@pytest.fixture(params=["with", errno.ENOLCK], ids=["locks", "none"])
def _file_system(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """One that knows locks, and one that does not."""

    def refuse(*_: object) -> None:
        raise OSError(request.param, os.strerror(request.param))

    if request.param != "with":
        monkeypatch.setattr(fcntl, "flock", refuse)


def count_up(folder: Path) -> None:
    for _ in range(5):
        with locks.alone(folder / "lock", "another process counts"):
            before = int((folder / "count").read_text())
            time.sleep(0.005)
            (folder / "count").write_text(str(before + 1))


def hold(folder: Path, holds: Event) -> None:
    with locks.alone(folder / "lock", "another process holds it"):
        holds.set()
        time.sleep(60)


@pytest.fixture
def owner(tmp_path: Path) -> Iterator[Callable[[], ForkProcess]]:
    """``owner()``: a process that owns the lock until it is ended."""
    started = list[ForkProcess]()

    def start() -> ForkProcess:
        holds = PROCESSES.Event()
        started.append(PROCESSES.Process(target=hold, args=(tmp_path, holds)))
        started[-1].start()
        assert holds.wait(60)
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def seconds_to_get(folder: Path) -> float:
    start = time.monotonic()
    with locks.alone(folder / "lock", "another process holds it"):
        return time.monotonic() - start


@pytest.mark.usefixtures("_file_system")
def test_one_at_a_time(tmp_path: Path) -> None:
    (tmp_path / "count").write_text("0")
    processes = [PROCESSES.Process(target=count_up, args=(tmp_path,)) for _ in range(4)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * 4
    assert (tmp_path / "count").read_text() == "20"


@pytest.mark.usefixtures("_file_system")
def test_a_killed_owner_is_waited_for_in_vain_for_a_while_at_most(
    tmp_path: Path, owner: Callable[[], ForkProcess], capsys: pytest.CaptureFixture[str]
) -> None:
    process = owner()
    process.kill()
    process.join()
    assert seconds_to_get(tmp_path) < 2 * locks.SILENCE
    said = capsys.readouterr().out
    assert said in (
        "",
        "waiting: another process holds it\n" + f"no sign of life for 1 s: {tmp_path}/lock.taken is taken over\n",
    )
    assert seconds_to_get(tmp_path) < 0.5 * locks.SILENCE


@pytest.mark.usefixtures("_file_system")
def test_an_owner_that_hangs_is_one_without_a_sign_of_life(tmp_path: Path, owner: Callable[[], ForkProcess]) -> None:
    os.kill(owner().pid or 0, signal.SIGSTOP)
    assert locks.SILENCE < seconds_to_get(tmp_path) < 3 * locks.SILENCE


@pytest.mark.usefixtures("_file_system")
def test_an_owner_that_lives_is_waited_for(tmp_path: Path, owner: Callable[[], ForkProcess]) -> None:
    process = owner()
    waiting = PROCESSES.Process(target=seconds_to_get, args=(tmp_path,))
    waiting.start()
    waiting.join(2.5 * locks.SILENCE)
    assert waiting.exitcode is None
    process.terminate()
    waiting.join(60)
    assert waiting.exitcode == 0


@pytest.mark.usefixtures("_file_system")
@pytest.mark.parametrize("clock", [0.0, 4e9])
def test_files_of_the_dead_hold_nobody_up(tmp_path: Path, clock: float) -> None:
    """Empty, with the time of another host's clock, long ago or in the future."""
    for name in ("lock", "lock.taken"):
        (tmp_path / name).touch()
        os.utime(tmp_path / name, (clock, clock))
    assert seconds_to_get(tmp_path) < 2 * locks.SILENCE
    assert not (tmp_path / "lock.taken").exists() or fcntl.flock.__module__ != __name__


@pytest.mark.parametrize("code", [errno.EACCES, errno.EPERM, errno.EROFS])
def test_where_nothing_can_be_written_the_work_says_so_itself(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, code: int
) -> None:
    def refuse(*_: object) -> int:
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "open", refuse)
    assert seconds_to_get(tmp_path) < locks.SILENCE


def test_nothing_is_left_of_a_lock(tmp_path: Path) -> None:
    seconds_to_get(tmp_path)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(("age", "alive"), [(0.0, True), (0.9, True), (1.5, False), (-0.9, True), (-1.5, False)])
def test_a_sign_of_life_is_one_for_a_while(tmp_path: Path, age: float, alive: bool) -> None:
    """Of the future too: a clock may have been set back."""
    (tmp_path / "file").touch()
    then = time.time() - age
    os.utime(tmp_path / "file", (then, then))
    assert locks.lives(tmp_path / "file") is alive
    assert [path.name for path in tmp_path.iterdir()] == ["file"]
    assert not locks.lives(tmp_path / "other")
