"""What sweeps are called that nobody has named."""

import multiprocessing
from multiprocessing.queues import Queue
from multiprocessing.synchronize import Barrier
from pathlib import Path

import pytest
from omegaconf import DictConfig, OmegaConf

from qdexp.errors import UserError
from qdexp.sweep.naming import named

PROCESSES = multiprocessing.get_context("fork")
AT_ONCE = 10


def config(out: Path, sweep: str = "${second}") -> DictConfig:
    return OmegaConf.create({"out": str(out), "sweep": sweep, "second": "2026-01-01_12-00-00"})


def begin(out: Path, start: Barrier, called: "Queue[str]") -> None:
    start.wait(60)
    with named(config(out)) as name:
        (out / "sweeps" / name / "cells.json").write_text("{}")
        called.put(name)


def test_sweeps_that_begin_in_one_second_have_names_of_their_own(tmp_path: Path) -> None:
    start, called = PROCESSES.Barrier(AT_ONCE), PROCESSES.Queue()
    processes = [PROCESSES.Process(target=begin, args=(tmp_path, start, called)) for _ in range(AT_ONCE)]
    for process in processes:
        process.start()
    names = {called.get(timeout=60) for _ in processes}
    for process in processes:
        process.join(60)
    second = "2026-01-01_12-00-00"
    assert names == {second, *(f"{second}_{turn}" for turn in range(2, AT_ONCE + 1))}


def test_a_name_that_was_asked_for_is_shared(tmp_path: Path) -> None:
    with named(config(tmp_path, "ladder")) as one, named(config(tmp_path, "ladder")) as other:
        assert (one, other) == ("ladder", "ladder")
    assert not list(tmp_path.iterdir())


def test_a_sweep_that_is_refused_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="bits"), named(config(tmp_path)):
        raise UserError("quant.weight_bits=9")
    assert not list(tmp_path.iterdir())


def test_a_folder_that_cannot_be_written_to_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "out").write_text("a file")
    with pytest.raises(UserError, match=r"^out=\S+/out: File exists; choose a folder"), named(config(tmp_path / "out")):
        pass
