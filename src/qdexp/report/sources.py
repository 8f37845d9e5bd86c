"""The sources of a report: the records that its user names, and the cells of a sweep that have none yet."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from qdexp import listing
from qdexp.errors import UserError, did_you_mean
from qdexp.layout import Layout, Sweep, files_of, records_in
from qdexp.record import Record, read_records, readable


@dataclass(frozen=True)
class Source:
    """Records, the output folder that they lie in, and the labels of cells that are still to come."""

    name: str
    out: Path
    records: list[Record]
    missing: list[str]


def open_source(given: Sequence[str], out: Path) -> Source:
    """The sweep that ``given`` names (its name under ``out``, or its folder), or the record files or folder of records; the
    newest sweep where nothing is named.

    Raises UserError where there is nothing of the kind, or no record yet.
    """
    if not given:
        return _listed(newest(out))
    first, layout = Path(given[0]), Layout(out)
    for sweep in (layout.sweep(given[0]), Sweep(first)):
        if len(given) == 1 and files_of(sweep.cells):
            return _listed(sweep)
    if not first.exists():
        known = names(layout)
        meant = f"{did_you_mean(given[0], known)}; sweeps there: {', '.join(known) or 'none'}"
        raise UserError(f"{given[0]}: no sweep in {layout.sweeps} and no file{meant}")
    records = _in_folder(first) if first.is_dir() else read_records(map(Path, given))
    folder = first if first.is_dir() else first.parent
    return Source(folder.resolve().parent.name, folder.resolve().parent, records, [])


def _in_folder(folder: Path) -> list[Record]:
    return readable(records_in(folder)) or read_records(folder)  # the latter says why there are none


def newest(out: Path) -> Sweep:
    """The sweep of an output folder that was started last, on whatever machine. Raises UserError where there is none."""
    found = Layout(out).all_cells()
    if not found:
        raise UserError(f"--out {out}: no sweep was started here; python -m qdexp -m starts one, --out names another folder")
    return Sweep(found[-1].parent)


def names(layout: Layout) -> list[str]:
    """The names of the sweeps that were started, the newest last."""
    newest_first = (path.parent.name for path in reversed(layout.all_cells()))
    return list(dict.fromkeys(newest_first))[::-1]


def _listed(sweep: Sweep) -> Source:
    name, layout = sweep.folder.resolve().name, sweep.layout
    cells = listing.read(sweep)
    paths = {cell: layout.record(cell) for cell in cells}
    records = readable(path for path in paths.values() if path.exists())
    if not records:
        raise UserError(f"{name}: none of its {len(cells)} cells has a record yet; wait for the first")
    missing = [listed.label for cell, listed in cells.items() if not paths[cell].exists()]
    return Source(name, layout.out, records, missing)
