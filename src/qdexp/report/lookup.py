"""Lookup of a checkpoint: by its folder, a record, or the name of a cell in tables and in the lines of a run."""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import NamedTuple

from qdexp import listing
from qdexp.errors import UserError, did_you_mean
from qdexp.layout import Layout, records_in
from qdexp.record import Record, read_records
from qdexp.report.rows import names

SHOWN = 5
"""The number of cells that are listed where several may be meant."""


class Found(NamedTuple):
    """The ``folder`` of a checkpoint, and the ``record`` of its cell, where it was not named by that folder."""

    folder: Path
    record: Record | None = None


def checkpoint(given: str | Path, out: Path) -> Path:
    """The folder of a checkpoint, see ``find``."""
    return find(given, out).folder


def find(given: str | Path, out: Path) -> Found:
    """A checkpoint.

    Args:
        given: That folder; a record; or a cell that has a record in ``out``: its name or how that begins, its method, or what
            it is called in a table or by a run of a sweep there.
        out: An output folder.

    Raises:
        qdexp.errors.UserError: There is none, or it may be one of several, or the cell has none.
    """
    path = Path(given)
    if path.is_dir():
        return Found(path)
    if path.is_file():
        return _of(read_records([path])[0], path.absolute().parent.parent)
    if path.suffix == ".json":
        there = records_in(path.parent)
        near = did_you_mean(path.stem, [one.stem for one in there], [str(one) for one in there])
        raise UserError(f"{given}: there is no such record{near or f'; {_listed([one.name for one in there])}'}")
    name, layout = str(given), Layout(out)
    paths = records_in(layout.records)
    if layout.record(name) in paths:
        return _of(read_records([layout.record(name)])[0], out)
    records = read_records(paths) if paths else []
    called = [(text.lower(), record) for text, record in _called(records, layout)]
    found = [record for text, record in called if text == name.lower()]
    found = found or [record for record in records if record["cell"].startswith(name)]
    if not found:
        known = [record["cell"] for record in records]
        near = did_you_mean(name, list(dict.fromkeys([*known, *(text for text, _ in called)]))) or f"; {_listed(known)}"
        raise UserError(f"{given}: no folder of a checkpoint, no record, and no cell in {layout.records}{near}")
    loadable = {record["artifacts"]["checkpoint"]: record for record in found if "checkpoint" in record.get("artifacts", {})}
    if len(loadable) > 1:
        raise UserError(f"{given}: {_listed([record['cell'] for record in loadable.values()])}; name one of them")
    return _of([*loadable.values(), *found][0], out)


def _of(record: Record, out: Path) -> Found:
    cell = record["cell"]
    if record["status"] != "complete":
        raise UserError(f"{cell}: failed ({record.get('error', {}).get('stage')}), so it has no checkpoint: run it again")
    folder = record.get("artifacts", {}).get("checkpoint")
    if folder is None:
        raise UserError(f"{cell}: is in full precision, so there is nothing quantized to load; its weights are model.weights")
    return Found(out / str(folder), record)


def _listed(cells: Sequence[str]) -> str:
    more = f" and {len(cells) - SHOWN} more" if len(cells) > SHOWN else ""
    return f"there are {', '.join(cells[:SHOWN])}{more}" if cells else "there are none"


def _called(records: Sequence[Record], layout: Layout) -> Iterator[tuple[str, Record]]:
    """The names of the cells: by their methods, by the runs of sweeps, and in the tables of a sweep or of all records."""
    tables = [records]
    for path in layout.all_cells():
        try:
            cells = listing.of_run(path)
        except UserError:
            continue  # the sweep says so itself
        tables.append([record for record in records if record["cell"] in cells])
        yield from ((cells[record["cell"]].label, record) for record in tables[-1])
    for record in records:
        yield record["axes"]["method"], record
    for table in tables:
        comparable = defaultdict(list)
        for record in table:
            if record["status"] == "complete":
                comparable[record["protocol"]["hash"]].append(record)
        for group in comparable.values():
            yield from zip(names(group), group, strict=True)
