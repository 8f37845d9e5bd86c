"""What several processes tell of one sweep at once."""

import multiprocessing
import os
import time
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest

from qdexp import listing
from qdexp.errors import UserError
from qdexp.layout import Layout, Sweep, files_of
from qdexp.listing import Line
from qdexp.report.sources import names

PROCESSES = multiprocessing.get_context("fork")
AT_ONCE, TIMES = 10, 5


@pytest.fixture
def sweep(tmp_path: Path) -> Sweep:
    return Layout(tmp_path).sweep("trial")


def tell(sweep: Sweep, number: int, start: Barrier) -> None:
    for time_ in range(TIMES):
        start.wait(60)
        listing.write(sweep, {f"cell-{number}-{time_}": Line(f"cell {number}", [f"samples-{number}"])})


def test_nothing_is_lost_that_ten_processes_tell_at_once(sweep: Sweep) -> None:
    start = PROCESSES.Barrier(AT_ONCE)
    processes = [PROCESSES.Process(target=tell, args=(sweep, number, start)) for number in range(AT_ONCE)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(60)
    assert [process.exitcode for process in processes] == [0] * AT_ONCE
    found = listing.read(sweep)
    assert found.keys() == {f"cell-{number}-{time_}" for number in range(AT_ONCE) for time_ in range(TIMES)}
    assert found["cell-3-0"] == Line("cell 3", ["samples-3"])
    assert sweep.cells.exists()
    assert len(list(sweep.folder.iterdir())) == AT_ONCE * TIMES


def test_a_file_system_without_links_will_do(sweep: Sweep, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object) -> None:
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr(os, "link", refuse)
    for name in ("a", "b"):
        listing.write(sweep, {name: Line(name, [])})
    assert listing.read(sweep).keys() == {"a", "b"}


def test_the_last_run_says_what_a_cell_is_called(sweep: Sweep) -> None:
    for label in ("first", "second", "third"):
        listing.write(sweep, {"a": Line(label, [])})
    assert listing.read(sweep)["a"].label == "third"


def test_the_same_again_adds_no_file_and_makes_the_sweep_the_newest(sweep: Sweep) -> None:
    layout, other = sweep.layout, sweep.layout.sweep("other")
    cells = {"a": Line("a", [])}
    for one in (sweep, other):
        listing.write(one, cells)
        time.sleep(0.02)  # the resolution of times of files
    assert names(layout) == ["trial", "other"]
    listing.write(sweep, cells)
    assert names(layout) == ["other", "trial"]
    assert files_of(sweep.cells) == [sweep.cells]


@pytest.mark.parametrize("text", ['{"a', "[]", '{"a": {"label": 3, "entries": []}}', '{"a": {"label": "x"}}', "\x00"])
def test_what_is_no_list_is_named(sweep: Sweep, text: str) -> None:
    listing.write(sweep, {"a": Line("a", [])})
    sweep.cells.write_text(text)
    with pytest.raises(UserError, match=r"^\S+/cells\.json is no list of cells \([^\n]+\): delete it and run its sweep again$"):
        listing.read(sweep)
