"""Bars on a real terminal, and none elsewhere."""

import contextlib
import os
import threading
from collections.abc import Callable, Iterator

import pytest

from qdexp import progress

HIDE, SHOW = "\x1b[?25l", "\x1b[?25h"
"""The cursor: a display hides it when it starts, and shows it when it ends."""


@contextlib.contextmanager
def terminal() -> Iterator[list[str]]:
    """Standard output is a terminal; afterwards the list holds what it was sent."""
    ours, theirs = os.openpty()
    parts, said = list[bytes](), list[str]()

    def read() -> None:
        with contextlib.suppress(OSError):  # how Linux says that nobody writes any more
            while part := os.read(ours, 4096):
                parts.append(part)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        with os.fdopen(theirs, "w", buffering=1) as stream, contextlib.redirect_stdout(stream):
            yield said
    finally:
        reader.join()
        os.close(ours)
        said.append(b"".join(parts).decode())


@pytest.fixture(autouse=True)
def _xterm(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm")
    monkeypatch.setenv("COLUMNS", "120")


def test_a_sweep_has_one_display(qdexp: Callable[..., tuple[int, str, str]]) -> None:
    with terminal() as shown:
        code, _, err = qdexp("-m", "method=fp,qdiffusion")
    (said,) = shown
    assert (code, err) == (0, "")
    assert said.count(HIDE) == said.count(SHOW) == 1
    for bar in ("[1/2] fp  samples", "[2/2] qdiffusion w4a8  weights", "batches", "weight rounding", " left"):
        assert bar in said
    during, _, after = said.partition(SHOW)
    assert "  scales " in during
    assert "record   " in after  # the table is printed when the bars are gone


def test_a_display_ends_with_the_work_that_fails() -> None:
    with terminal() as shown:
        with pytest.raises(ValueError, match="broken"), progress.bar("outer", 2), progress.bar("inner", 2) as bar:
            assert bar.shown
            bar.update(1, "half")
            raise ValueError("broken")
        with progress.bar("again", 1) as again:
            assert again.shown
    assert shown[0].count(HIDE) == shown[0].count(SHOW) == 2


def test_elsewhere_there_is_nothing(capsys: pytest.CaptureFixture[str]) -> None:
    with progress.bar("work", 2) as bar:
        bar.update(1)
        assert not bar.shown
    assert capsys.readouterr() == ("", "")
