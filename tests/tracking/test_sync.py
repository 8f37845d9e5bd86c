"""Whether offline runs are whole, and whether they were sent: nothing here believes W&B's exit code."""

import shutil
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdexp.tracking.log import HEADER
from qdexp.tracking.mirror import mirror
from qdexp.tracking.sync import check, runs_in
from qdexp.wandb import main

Record = dict[str, Any]
Command = Callable[..., int]


@pytest.fixture
def run(record: Record, tmp_path: Path, entry: Callable[..., list[Path]]) -> Path:
    """A whole offline run with an artifact."""
    folder = tmp_path / record["artifacts"]["checkpoint"]
    entry(folder.parent, {f"{folder.name}/checkpoint.json": b"{}"})
    return mirror(record, "sweep", tmp_path, "project", "offline", None, out=tmp_path)


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch) -> Command:
    """``command(*arguments)``: the exit code of ``python -m qdexp.wandb``."""

    def call(*arguments: str | Path) -> int:
        monkeypatch.setattr(sys, "argv", ["qdexp.wandb", *map(str, arguments)])
        return main()

    return call


def log_of(run: Path) -> Path:
    return next(run.glob("*.wandb"))


def test_a_whole_run_passes(run: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(run).problems == []
    assert command("check", run.parent) == 0
    assert "1 runs, 0 not whole" in capsys.readouterr().out


def test_the_runs_of_a_folder_and_a_run_by_name(run: Path) -> None:
    assert runs_in(run.parent) == [run] == runs_in(run)


@pytest.mark.parametrize(
    ("harm", "said"),
    [
        (lambda raw: raw[: len(HEADER)], "is empty"),
        (lambda raw: raw[:-20], "corrupt at byte"),
        (lambda raw: raw[:300] + bytes([raw[300] ^ 1]) + raw[301:], "corrupt at byte"),
        (lambda raw: b"what" + raw[4:], "not a .wandb file"),
    ],
)
def test_what_wandb_would_send_as_whole_is_found(
    run: Path, command: Command, harm: Callable[[bytes], bytes], said: str, capsys: pytest.CaptureFixture[str]
) -> None:
    log_of(run).write_bytes(harm(log_of(run).read_bytes()))
    assert said in " ".join(check(run).problems)
    assert command("sync", run.parent) == 1  # and nothing is sent
    assert "1 runs, 1 not whole" in capsys.readouterr().out


def test_a_killed_run_has_no_end(run: Path) -> None:
    raw = log_of(run).read_bytes()
    lengths = [len(raw) - cut for cut in range(1, 200)]
    states = []
    for length in lengths:
        log_of(run).write_bytes(raw[:length])
        states.append(check(run).problems)
    assert all(states)
    assert any("has no end" in problem for problems in states for problem in problems)


def test_a_changed_artifact_is_found(run: Path, record: Record, tmp_path: Path) -> None:
    file = tmp_path / record["artifacts"]["checkpoint"] / "checkpoint.json"
    file.write_text("{ }")
    assert "has 3 bytes, not the 2 that were logged" in check(run).problems[0]
    file.unlink()
    assert "is missing" in check(run).problems[0]


def test_a_folder_without_its_log(run: Path, command: Command) -> None:
    log_of(run).unlink()
    assert check(run).problems == ["holds 0 logs (run-*.wandb), not one"]
    shutil.rmtree(run)
    with pytest.raises(SystemExit) as stop:
        command("check", run.parent)
    assert stop.value.code == 2


def test_a_server_that_is_not_there_has_a_time_limit_and_an_exit_code(
    run: Path, command: Command, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "0" * 40)
    started = time.monotonic()
    assert command("sync", run, "--timeout", "4") == 1
    assert "no end after 4 s" in capsys.readouterr().out
    assert time.monotonic() - started < 60
    assert not check(run).sent


def test_a_run_that_was_sent_is_not_sent_again(run: Path, command: Command, capsys: pytest.CaptureFixture[str]) -> None:
    log_of(run).with_suffix(".wandb.synced").touch()
    assert command("sync", run) == 0
    assert "sent before" in capsys.readouterr().out
