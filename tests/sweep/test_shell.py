"""Sweeps that run in a shell of this machine, in real processes: how they end, and what other shells see of them."""

import contextlib
import errno
import fcntl
import multiprocessing
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from qdexp import locks
from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.layout import Layout, Sweep
from qdexp.sweep.__main__ import main as sweep_command
from qdexp.sweep.launch import Frozen
from qdexp.sweep.shell import Shell, living, running

Command = Callable[..., tuple[int, str, str]]
SLEEPER = """\
import os
import sys
import time
from pathlib import Path

from qdexp.errors import one_line
from qdexp.layout import Layout
from qdexp.sweep import manifest
from qdexp.sweep.local import Local
from qdexp.sweep.shell import running

OUT = Path(sys.argv[-1])


class Sleep:
    def __init__(self, shell):
        self.shell, self.out = shell, OUT

    def __call__(self):
        self.shell.end_with()
        (self.out / f"{os.getpid()}.pid").touch()
        time.sleep(600)


if __name__ == "__main__":
    import sleeper

    with one_line(), running(Layout(OUT).sweep("trial")) as shell:
        registry = manifest.Registry(OUT)
        task = lambda node, shell: sleeper.Sleep(shell)
        Local(registry, "trial", 2, [], task, shell).run(manifest.read(OUT, "trial").nodes)
"""


def ignore_interrupts() -> None:
    """As a script's shell does for what it starts in the background."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)


@pytest.fixture
def sweep(cell_of: Callable[..., Cell]) -> Frozen:
    frozen = Frozen([cell_of("method=fp"), cell_of("method=ptq")])
    frozen.write()
    return frozen


@pytest.fixture
def sleeping(sweep: Frozen, tmp_path: Path) -> Iterator[subprocess.Popen[str]]:
    """A shell whose sweep is at its first two jobs, for ten minutes."""
    script = tmp_path / "sleeper.py"
    script.write_text(SLEEPER)
    path = os.pathsep.join(filter(None, [str(tmp_path), os.environ.get("PYTHONPATH")]))
    process = subprocess.Popen(
        [sys.executable, str(script), str(sweep.out)],
        env=os.environ | {"PYTHONPATH": path},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=ignore_interrupts,
    )
    try:
        wait_until(lambda: len(jobs(sweep.out)) == 2)
        yield process
    finally:
        process.kill()
        process.wait()


def jobs(out: Path) -> list[int]:
    return [int(path.stem) for path in out.glob("*.pid")]


def gone(process: int) -> bool:
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return True
    with contextlib.suppress(OSError):
        return Path(f"/proc/{process}/stat").read_text().rpartition(")")[2].split()[0] == "Z"
    return False


def wait_until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def look(sweep: Frozen, capsys: pytest.CaptureFixture[str]) -> str:
    capsys.readouterr()
    sweep_command(["status", "--out", str(sweep.out)])
    return capsys.readouterr().out


def test_cancel_ends_the_shell_and_its_jobs(
    sweep: Frozen, sleeping: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    waiting = len(sweep.nodes) - 2
    assert f"jobs: 2 running, {waiting} waiting; run by process {sleeping.pid} on" in look(sweep, capsys)
    sweep_command(["cancel", "--out", str(sweep.out)])
    said = capsys.readouterr().out
    assert re.search(
        rf"^cancelled {len(sweep.nodes)} jobs of trial; process {sleeping.pid} on \S+ has ended$", said, re.MULTILINE
    )
    _, err = sleeping.communicate(timeout=10)
    assert sleeping.returncode == 1
    assert err.splitlines() == [
        "qdexp: sweep trial: cancelled by python -m qdexp.sweep cancel; finished stages are kept, the same command goes on"
    ]
    assert all(map(gone, jobs(sweep.out)))
    after = look(sweep, capsys)
    assert "its job ended as CANCELLED" in after
    assert not re.search("running|waiting|LOST|run by", after.rpartition("jobs: ")[2])
    sweep_command(["cancel", "--out", str(sweep.out)])
    assert "cancelled 0 jobs of trial\n" in capsys.readouterr().out


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGKILL])
def test_jobs_end_with_their_shell(
    sweep: Frozen, sleeping: subprocess.Popen[str], how: signal.Signals, capsys: pytest.CaptureFixture[str]
) -> None:
    sleeping.send_signal(how)
    sleeping.wait()
    wait_until(lambda: all(map(gone, jobs(sweep.out))))
    assert "its job ended as LOST, with its shell" in look(sweep, capsys)


def test_a_job_that_is_killed_is_no_longer_said_to_run(
    sweep: Frozen, sleeping: subprocess.Popen[str], capsys: pytest.CaptureFixture[str]
) -> None:
    os.kill(jobs(sweep.out)[0], signal.SIGKILL)
    wait_until(lambda: "its job ended as FAILED" in look(sweep, capsys))


def test_a_shell_that_ends_leaves_nothing_and_one_that_was_killed_is_forgotten(sweep: Frozen) -> None:
    killed = sweep.folder.shell("0123456789ab")
    with running(sweep.folder) as shell:
        assert [one.name for one in living(sweep.folder)] == [shell.name]
        killed.write_text("process 1 on another\n0123-another\n")  # where its lock cannot be seen
        assert {one.name for one in living(sweep.folder)} == {shell.name, killed.name}
        os.utime(killed, (1e9, 1e9))  # no sign of life since
        assert [one.name for one in living(sweep.folder)] == [shell.name]
    with running(sweep.folder):
        assert not killed.exists()
    assert not list(sweep.folder.shells.iterdir())
    assert living(sweep.folder) == []


def follow(sweep: Sweep, name: str) -> None:
    Shell(sweep, name).end_with()
    time.sleep(60)


def test_where_the_file_system_knows_no_locks_signs_of_life_tell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuse)
    monkeypatch.setattr(locks, "BEAT", 0.1)
    monkeypatch.setattr(locks, "SILENCE", 1.0)
    sweep = Layout(tmp_path).sweep("trial")
    with running(sweep) as shell:
        job = multiprocessing.get_context("fork").Process(target=follow, args=(sweep, shell.name))
        job.start()
        job.join(1.5 * locks.SILENCE)
        assert job.exitcode is None
        assert [one.place for one in living(sweep)] == [f"process {os.getpid()} on {socket.gethostname()}"]
    job.join(2 * locks.SILENCE)
    assert job.exitcode == -signal.SIGKILL
    assert living(sweep) == []


def test_a_sweep_without_jobs_is_looked_after_too(
    finished: Callable[..., Cell],
    qdexp: Command,
    capsys: pytest.CaptureFixture[str],
    tmp_path: Path,
) -> None:
    """Of a sweep that ran here its list of cells tells, and the newest one is taken."""
    command = ("-m", "method=fp", "sweep=earlier")
    finished("method=fp")
    assert qdexp(*command)[0] == 0
    assert qdexp("-m", "method=fp,ptq", "calib.rows=99", "protocol.n=20")[0] == 1  # refused before it is listed
    out = ["--out", str(tmp_path / "out")]
    sweep_command(["status", *out])
    said = capsys.readouterr().out
    assert said.startswith(f"sweep earlier, the newest in {tmp_path / 'out'}\n")
    assert "1/1 cells complete" in said and "nothing runs it" not in said
    sweep_command(["collect", *out])
    assert "1/1 cells complete" in capsys.readouterr().out
    sweep_command(["cancel", *out])
    assert "cancelled 0 jobs of earlier\n" in capsys.readouterr().out
    with pytest.raises(UserError, match="logs fp: sweep earlier has no jobs: it runs in the shell that started it"):
        sweep_command(["logs", "fp", *out])
    with pytest.raises(UserError, match=r"later: no such sweep in .* \(there are: earlier\)"):
        sweep_command(["status", "later", *out])
    with pytest.raises(UserError, match="no sweep was started here; python -m qdexp -m starts one"):
        sweep_command(["status", "--out", str(tmp_path)])


@pytest.mark.slow
def test_a_sweep_that_was_cancelled_goes_on(qdexp: Command, small: list[str], executed: Callable[..., list[str]]) -> None:
    """The whole command, about half a minute: what was finished is kept, and the next run makes the rest."""
    command = ["-m", "method=fp", "hydra/launcher=local", "cluster.parts=2", "protocol.n=120"]
    options = [option for option in small if not option.startswith("protocol.n=")]
    out = Path(next(option.removeprefix("out=") for option in small if option.startswith("out=")))
    process = subprocess.Popen(
        [sys.executable, "-m", "qdexp", *command, *options], stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True,
        env=os.environ | {"OMP_NUM_THREADS": "1"}, preexec_fn=ignore_interrupts,
    )  # fmt: skip
    wait_until(lambda: any(out.glob("store/.work-samples-*/shard-*")))
    (shards,) = out.glob("store/.work-samples-*")
    sweep_command(["cancel", "--out", str(out)])
    first = {path.name: path.stat().st_mtime_ns for path in shards.glob("shard-*")}
    assert "qdexp: sweep trial: cancelled by python -m qdexp.sweep cancel;" in process.communicate(timeout=10)[1]
    assert process.returncode == 1
    assert executed() == []
    assert qdexp(*command)[0] == 0
    (samples,) = out.glob("store/samples-*")
    assert {name: (samples / name).stat().st_mtime_ns for name in first} == first
