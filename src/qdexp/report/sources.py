"""What a report is made of: the records that its user names, and the cells of a sweep that have none yet."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdexp.errors import UserError
from qdexp.record import Record, read_records

CELLS = "cells.json"
"""In a sweep's folder: ``{cell: {label, entries}}`` of all its cells, written before the first one starts."""


@dataclass(frozen=True)
class Source:
    """Records, the output folder that they lie in, and the labels of cells that are still to come."""

    name: str
    out: Path
    records: list[Record]
    missing: list[str]


def open_source(given: Sequence[str], out: Path) -> Source:
    """The sweep that ``given`` names (its name under ``out``, or its folder), or the record files or folder of records.

    Raises UserError where there is nothing of the kind, or no record yet.
    """
    first = Path(given[0])
    for folder in (out / "sweeps" / given[0], first):
        if len(given) == 1 and (folder / CELLS).is_file():
            return _sweep(folder)
    if not first.exists():
        known = sorted(path.parent.name for path in (out / "sweeps").glob(f"*/{CELLS}"))
        raise UserError(f"{given[0]}: no sweep in {out / 'sweeps'} and no file; sweeps there: {', '.join(known) or 'none'}")
    records = read_records(first if first.is_dir() else map(Path, given))
    folder = first if first.is_dir() else first.parent
    return Source(folder.resolve().parent.name, folder.resolve().parent, records, [])


def _sweep(folder: Path) -> Source:
    out = folder.resolve().parents[1]
    try:
        cells: dict[str, dict[str, Any]] = json.loads((folder / CELLS).read_text())
    except ValueError as error:
        raise UserError(f"{folder / CELLS} is truncated: delete it and run the sweep again") from error
    paths = {cell: out / "records" / f"{cell}.json" for cell in cells}
    records = read_records([path for path in paths.values() if path.exists()])
    if not records:
        raise UserError(f"{folder.name}: none of its {len(cells)} cells has a record yet; wait for the first")
    missing = [listed["label"] for cell, listed in cells.items() if not paths[cell].exists()]
    return Source(folder.name, out, records, missing)
