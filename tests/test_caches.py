"""Every file that saves work may lose its end: it is made again, and no result tells. docs/security.md lists the kinds."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from qdexp import files
from qdexp.cell import Cell
from qdexp.layout import MANIFEST, Layout
from qdexp.recon.result import BlockErrors
from qdexp.recon.walk import _read, _write
from qdexp.sampling.conditions import EMPTY, piece_path

OPTIONS = ("method=reconstruction", "inspection.rows=4", "recon.scales.iterations=2")
PARTS = ("status", "keys", "metrics", "curves", "coverage", "reconstruction", "artifacts")


def halved(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def result(out: Path) -> dict[str, Any]:
    """What of the record no time is in, nor the place, and the digests of all that is in the store."""
    (record,) = (files.read_sealed(path) for path in (out / "records").iterdir())
    entries = {folder.name: files.read_sealed(folder / MANIFEST)["files"] for folder in (out / "store").glob("[!.]*")}
    return {part: record.get(part) for part in PARTS} | {"store": entries}


@pytest.mark.parametrize("lost", ["a file of each entry", "each manifest"])
def test_entries_of_the_store(finished: Callable[..., Cell], executed: Callable[..., list[str]], lost: str) -> None:
    cell = finished(*OPTIONS)
    before, made = result(cell.out), executed()
    for folder in (cell.out / "store").glob("[!.]*"):
        results = [path for path in folder.rglob("*") if path.is_file() and path.name != MANIFEST]
        halved(folder / MANIFEST if lost == "each manifest" else max(results, key=lambda path: path.stat().st_size))
    halved(cell.record)
    cell.run()
    assert result(cell.out) == before
    assert sorted(executed()) == sorted(made * 2)


def test_shards_of_an_entry_in_the_making(finished: Callable[..., Cell]) -> None:
    cell = finished(*OPTIONS)
    before, layout = result(cell.out), Layout(cell.out)
    for stage in (cell.stages["samples"], cell.stages["trajectory"]):
        layout.entry(stage.entry).rename(layout.work(stage.entry))
        (layout.work(stage.entry) / MANIFEST).unlink()
        first, second, *_ = sorted(layout.work(stage.entry).glob("shard-*"))
        halved(first)
        second.write_bytes(b"")
    cell.record.unlink()
    cell.run()
    assert result(cell.out) == before


def test_costs_and_lists_of_machines_of_an_entry_in_the_making(finished: Callable[..., Cell]) -> None:
    cell = finished(*OPTIONS)
    before, layout, entry = result(cell.out), Layout(cell.out), cell.stages["samples"].entry
    layout.entry(entry).rename(layout.work(entry))
    (layout.work(entry) / MANIFEST).unlink()
    layout.costs(entry, "0-of-2").write_text('{"seconds": 1.')
    layout.begun(entry, "0-of-2").write_bytes(b"\xff")
    cell.record.unlink()
    cell.run()
    assert result(cell.out) == before
    assert json.loads(cell.record.read_text())["costs"]["samples"]["resumed"] == 1.0


def test_what_was_learned_of_a_block(tmp_path: Path) -> None:
    path = tmp_path / ".weights-0000.safetensors"
    _write(path, {"conv": torch.arange(100)}, BlockErrors("block", 2.0, 1.0))
    whole = path.read_bytes()
    again = _read(path, "block")
    assert again is not None and torch.equal(again[0]["conv"], torch.arange(100)) and again[1].learned == 1.0
    for size in (0, 4, 8, 40, len(whole) // 2, len(whole) - 1):
        path.write_bytes(whole[:size])
        assert _read(path, "block") is None
    files.write_tensors(path, {"another": torch.zeros(1)})
    assert _read(path, "block") is None


def test_conditions_of_an_entry_in_the_making(cell_of: Callable[..., Cell], conditional: str) -> None:
    cell = cell_of(conditional, "model=tiny_dit", "method=fp")
    cell.run()
    before, layout = result(cell.out), Layout(cell.out)
    (entry,) = {stage.entry for stage in cell.stages.values() if stage.name == "conditions"}
    layout.entry(entry).rename(layout.work(entry))
    (layout.work(entry) / MANIFEST).unlink()
    halved(piece_path(layout.work(entry), 0))
    halved(layout.work(entry) / EMPTY)
    cell.record.unlink()
    cell.run()
    assert result(cell.out) == before
    shutil.rmtree(cell.out)
