"""Sweeps that begin while a store is pruned, at every line that this executes, and prunes that are killed there."""

import os
import shutil
import signal
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any
from unittest.mock import ANY

import pytest

from qdexp import files, listing
from qdexp.errors import UserError
from qdexp.layout import Layout
from qdexp.listing import Line
from qdexp.store import Store, pruning

NEEDED, LEARNED, UNNEEDED = "samples-aaaaaaaaaaaaaaaa", "weights-bbbbbbbbbbbbbbbb", "samples-cccccccccccccccc"


@pytest.fixture(autouse=True)
def _no_power_failures(monkeypatch: pytest.MonkeyPatch) -> None:
    """A kill loses nothing that was written, flushed or not; flushing takes most of the time here."""
    monkeypatch.setattr(os, "fsync", lambda _: None)


def fill(folder: Path) -> dict[str, float]:
    files.write_text(folder / "shard-0", "drawn")
    return {"seconds": 1.0, "peak_memory_mb": 1.0}


def prepared(out: Path) -> Layout:
    """A store with two entries, and what a killed process had learned of a third; nothing needs them."""
    store = Store(out)
    for name in (NEEDED, UNNEEDED):
        store.make(name, fill, {})
    store.work(LEARNED).mkdir()
    files.write_text(store.work(LEARNED) / "block-0", "learned")
    return store.layout


def begin(layout: Layout) -> set[str]:
    """A sweep begins; returns what it finds."""
    listing.write(layout.sweep("new"), {"a-cell": Line("a cell", [NEEDED, LEARNED])})
    pruning.put_back(layout)
    return there(layout)


def there(layout: Layout) -> set[str]:
    """The files that it can use."""
    found = [*layout.entry(NEEDED).glob("*"), *layout.work(LEARNED).glob("*")]
    return {str(path.relative_to(layout.store)) for path in found}


def at_lines(does: dict[int, Callable[[], object]], work: Callable[[], object]) -> None:
    """Does ``work``, and what ``does`` says before the lines of these numbers, of those that it executes in ``pruning``."""
    count = 0

    def local(frame: FrameType, event: str, _: Any) -> Any:
        nonlocal count
        if event == "line":
            count += 1
            if count in does:
                sys.settrace(None)
                does.pop(count)()
                sys.settrace(trace)
        return local

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        return local if frame.f_code.co_filename == pruning.__file__ else None

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(before)


def lines(out: Path) -> int:
    """How many lines a prune executes."""
    layout, count = prepared(out), 0

    def one() -> None:
        nonlocal count
        count += 1

    at_lines(dict.fromkeys(range(1, 10000), one), lambda: pruning.remove(layout))
    return count


def found_by_a_sweep(out: Path, first: int, second: int) -> set[str]:
    """It begins at one line of a prune and looks into the store at a later one, then learns a block; returns what it finds.

    That, and what it learns, is there after.
    """
    layout, found = prepared(out), set[str]()

    def look() -> None:
        found.update(there(layout))
        layout.work(LEARNED).mkdir(exist_ok=True)
        files.write_text(layout.work(LEARNED) / "block-1", "learned")

    def both() -> None:
        begin(layout)
        look()

    does: dict[int, Callable[[], object]] = {first: lambda: begin(layout), second: look} if first < second else {first: both}
    at_lines(does, lambda: pruning.remove(layout))
    for late in does.values():  # the prune had less to do
        late()
    assert there(layout) == found | {f".work-{LEARNED}/block-1"}, (first, second)
    assert not layout.entry(UNNEEDED).exists()
    assert not layout.all_moved() + layout.all_returning() + layout.all_pruned()
    shutil.rmtree(out)
    return found


def test_a_sweep_that_begins_at_any_moment_finds_what_stays(tmp_path: Path) -> None:
    last = lines(tmp_path / "counted")
    pairs = [(first, second) for first in range(1, last + 1, 2) for second in range(first, last + 1, 11)]
    kept = [pair for pair in pairs if found_by_a_sweep(tmp_path / "out", *pair)]
    assert len(kept) > len(pairs) / 2  # nothing had been given up yet


def killed_prune(layout: Layout, line: int) -> None:
    if (child := os.fork()) == 0:
        at_lines({line: lambda: os.kill(os.getpid(), signal.SIGKILL)}, lambda: pruning.remove(layout))
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == -signal.SIGKILL


def test_a_prune_that_is_killed_at_any_moment_is_all_or_nothing(tmp_path: Path) -> None:
    for line in range(1, lines(tmp_path / "counted") + 1):
        layout = prepared(tmp_path / "out")
        everything = there(layout)
        killed_prune(layout, line)
        found = begin(layout)
        assert found in (everything, set()), line
        pruning.remove(layout)
        assert there(layout) == found
        left = {path.name for path in layout.store.iterdir()} - {layout.locks.name}
        assert left == ({NEEDED, f".work-{LEARNED}"} if found else set())
        shutil.rmtree(tmp_path / "out")


def test_sweeps_that_begin_all_the_time_stop_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    layout, removable = prepared(tmp_path), pruning.removable

    def meanwhile(layout: Layout) -> list[Path]:
        found = removable(layout)
        pruning.put_back(layout)
        return found

    monkeypatch.setattr(pruning, "removable", meanwhile)
    with pytest.raises(UserError, match=r"prune: a sweep has begun in .* each of the 10 times"):
        pruning.remove(layout)
    assert len(there(layout)) == 3


def test_what_killed_processes_left_unfinished_goes_after_a_day(tmp_path: Path) -> None:
    layout = prepared(tmp_path)
    begin(layout)
    layout.records.mkdir()
    young, old, folder = (layout.records / f"{files.PART}{name}" for name in ("young", "old", "folder"))
    young.write_text("half")
    old.write_text("half")
    folder.mkdir()
    (folder / "file").write_text("half")
    for path in (old, folder):
        os.utime(path, (1e9, 1e9))
    assert pruning.remove(layout) == {UNNEEDED: ANY, old.name: 4, folder.name: 4}
    assert [path.name for path in layout.records.iterdir()] == [young.name]
