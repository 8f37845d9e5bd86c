"""``python -m qdexp.store`` on the store of a real run."""

import io
import json
import shutil
import subprocess
import sys
import tarfile
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.store import Store
from qdexp.store.__main__ import main

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def out(finished: CellOf) -> Path:
    """An output folder with one cell."""
    return finished().out


def names(out: Path) -> set[str]:
    return {path.name for path in (out / "store").glob("[!.]*")}


def test_du(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["du", "--out", str(out)]) == 0
    said = capsys.readouterr().out
    rows = {line.split()[0]: line.split()[1] for line in said.splitlines()}
    assert rows["trajectory"] == rows["samples"] == "2"
    assert rows["all"] == str(len(names(out)))
    assert "nothing needs 0 bytes" in said


def test_verify_names_what_is_corrupt(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["verify", "--out", str(out)]) == 0
    shard = next((out / "store").glob("samples-*/shard-*"))
    shard.write_bytes(shard.read_bytes()[:-1])
    assert main(["verify", "--out", str(out)]) == 1
    whole = len(names(out)) - 1
    said = capsys.readouterr().out
    assert f"{shard.parent} is corrupt ({shard.name} is not what manifest.json says)" in said
    assert f"{whole} entries are whole, 1 corrupt" in said


def test_prune_removes_what_no_record_needs(out: Path, cell_of: CellOf, capsys: pytest.CaptureFixture[str]) -> None:
    kept = names(out)
    other = cell_of("method=ptq")
    other.run()
    other.record.unlink()
    (out / "store" / ".work-samples-0123456789abcdef").mkdir()
    before = names(out)
    main(["prune", "--out", str(out)])
    assert "would be freed: add --yes" in capsys.readouterr().out
    assert names(out) == before > kept
    main(["prune", "--out", str(out), "--yes"])
    assert names(out) == kept
    assert not list((out / "store").glob(".[wp]*"))
    assert main(["verify", "--out", str(out)]) == 0


def test_prune_keeps_what_a_sweep_waits_for(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    entry = next(name for name in names(out) if name.startswith("act-"))
    next((out / "records").iterdir()).unlink()
    (out / "sweeps" / "waiting").mkdir(parents=True)
    cells = {"a-cell": {"label": "a cell", "entries": [entry]}}
    (out / "sweeps" / "waiting" / "cells.json").write_text(json.dumps(cells))
    main(["prune", "--out", str(out), "--yes"])
    assert "without a record: sweeps waiting; delete" in capsys.readouterr().out
    assert names(out) == {entry}


def test_prune_beside_a_running_sweep(qdexp: Command, executed: Callable[[], list[str]], tmp_path: Path) -> None:
    """Again and again, from before the first stage until after the last: nothing is lost, nothing is made twice."""
    (tmp_path / "out" / "store").mkdir(parents=True)
    pruned, over = [], threading.Event()

    def prune() -> None:
        while not over.is_set():
            pruned.append(main(["prune", "--out", str(tmp_path / "out"), "--yes"]))

    thread = threading.Thread(target=prune)
    thread.start()
    try:
        code, _, err = qdexp("-m", "method=ptq")
    finally:
        over.set()
        thread.join()
    assert (code, err) == (0, "")
    assert len(pruned) > 10
    assert len(executed()) == len(set(executed())) == len(names(tmp_path / "out"))


@pytest.mark.parametrize("everything", [False, True])
def test_a_sweep_s_results_elsewhere(out: Path, cell_of: CellOf, tmp_path: Path, everything: bool) -> None:
    to = tmp_path / "laptop"
    main(["copy", "trial", str(to), "--out", str(out), *(["--all"] if everything else [])])
    cell = cell_of()
    assert (to / "records" / cell.record.name).read_bytes() == cell.record.read_bytes()
    missing = {stage.entry for stage in cell.stages.values()} - names(to)
    assert {name.split("-")[0] for name in missing} == (set() if everything else {"trajectory", "calibration"})
    store = Store(to)
    assert all(store.open(name) is not None for name in names(to))


def test_as_a_stream(out: Path, tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qdexp.store", "copy", "trial", "-", "--out", str(out)]
    stream = subprocess.run(command, capture_output=True, check=True).stdout
    with tarfile.open(fileobj=io.BytesIO(stream)) as tar:
        members = tar.getnames()
        tar.extractall(tmp_path / "laptop", filter="data")
    assert members[-1].startswith("records/")
    shutil.rmtree(out)
    assert all(Store(tmp_path / "laptop").open(name) is not None for name in names(tmp_path / "laptop"))


def test_nothing_corrupt_is_copied(out: Path, tmp_path: Path) -> None:
    path = next((out / "store").glob("features-*/features.safetensors"))
    raw = path.read_bytes()
    path.write_bytes(raw[:-1] + bytes([raw[-1] ^ 1]))
    with pytest.raises(UserError, match=r"features-\w+ is corrupt \(features\.safetensors"):
        main(["copy", "trial", str(tmp_path / "laptop"), "--out", str(out)])
    assert not list((tmp_path / "laptop").rglob("*.*"))


def test_a_sweep_that_does_not_say_what_it_needs_stops_prune(out: Path) -> None:
    (out / "sweeps" / "older").mkdir(parents=True)
    (out / "sweeps" / "older" / "cells.json").write_text('{"a-cell": "a cell"}')
    with pytest.raises(UserError, match=r"cells\.json is no list of cells \(a-cell: .*\): delete it and run its sweep again"):
        main(["prune", "--out", str(out), "--yes"])


@pytest.mark.parametrize("text", ['{"cell": "a', "{}", "[1]"])
def test_what_is_no_record_is_named(out: Path, text: str) -> None:
    (out / "records" / "other.json").write_text(text)
    with pytest.raises(UserError, match=r"other\.json is truncated, or no record \(.*\): delete it"):
        main(["du", "--out", str(out)])


def test_a_copy_to_where_nothing_can_be_written(out: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"copy trial .*/file: .*; choose a folder that can be written to"):
        main(["copy", "trial", str(tmp_path / "file"), "--out", str(out)])


@pytest.mark.parametrize(("arguments", "named"), [(["du"], "holds no store"), (["copy", "other", "-"], "no record of such")])
def test_mistakes(out: Path, tmp_path: Path, arguments: list[str], named: str) -> None:
    with pytest.raises(UserError, match=named):
        main([*arguments, "--out", str(tmp_path if arguments == ["du"] else out)])
