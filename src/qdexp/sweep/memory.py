"""The memory that a sweep takes, stage by stage: told, and refused where there is not as much."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.footprint.needs import Need, need_of, total
from qdexp.footprint.places import GB, Place, gigabytes
from qdexp.footprint.room import misfits, named, shares
from qdexp.stages.base import Stage
from qdexp.store import Store
from qdexp.sweep.jobs import RECORD

LEAST = 0.05 * GB
"""Of a stage that is shown."""


def show(cells: Sequence[Cell], store: Store, place: Place) -> None:
    """Prints what each kind of stage takes that is to be made, and which have no room in a place."""
    found: dict[str, dict[str, tuple[Need, Stage]]] = defaultdict(dict)
    for cell, stage in _missing(cells, store):
        found[stage.name][stage.entry] = need_of(stage, cell.config), stage
    if not found:
        return
    print(f"memory   {place.told(cells[0].device, cells[0].config.cluster)}")
    print(f"         {'stage':<16}{'GPU, GB':>9}{'host, GB':>10}  of what")
    unknown: dict[str, list[str]] = defaultdict(list)
    for name, needs in found.items():
        need, stage = max(needs.values(), key=lambda one: sum(map(total, shares(one[0], one[1].device))))
        device, host = shares(need, stage.device)
        for what in need.unknown:
            unknown[what].append(name)
        if total(device) + total(host) >= LEAST:
            rows = [f"rows of the walk {gigabytes(need.rows)}, where there is room"] if need.rows else []
            what = "; ".join([named(max(device, host, key=total)), *rows])
            on_device = gigabytes(total(device)) if device else "-"
            print(f"         {name:<16}{on_device:>9}{gigabytes(total(host)):>10}  {what}")
    for what, names in unknown.items():
        print(f"         not traced: {what} ({', '.join(names)})")
    for line in _misfits(cells, store, place):
        print(f"no room  {line}", flush=True)


def require(cells: Sequence[Cell], store: Store, place: Place) -> None:
    """Raises UserError where a stage that is to be made takes more than it has in a place."""
    lines = _misfits(cells, store, place)
    if lines:
        raise UserError(*lines)


def _misfits(cells: Sequence[Cell], store: Store, place: Place) -> list[str]:
    lines: dict[str, None] = {}
    for cell, stage in _missing(cells, store):
        need = need_of(stage, cell.config)
        rooms = dict.fromkeys(place.room(stage.device, cell.config.cluster, kind) for kind in sorted(kinds(cell, stage)))
        for room in rooms:
            lines |= dict.fromkeys(misfits(stage.name, need, stage.device, room))
    return list(lines)


def _missing(cells: Sequence[Cell], store: Store) -> Iterator[tuple[Cell, Stage]]:
    """The stages that are to be made, each once, with a cell that needs it."""
    stages = {stage.entry: (cell, stage) for cell in cells if cell.finished() is None for stage in cell.stages.values()}
    return ((cell, stage) for entry, (cell, stage) in stages.items() if not store.has(entry))


def kinds(cell: Cell, stage: Stage) -> set[str]:
    """The kinds of the jobs in which a stage may be made: who reads a quick one makes it."""
    if not stage.quick:
        return {stage.name}
    readers = [one for one in cell.stages.values() if stage.entry in {read.entry for read in one.inputs.values()}]
    return set().union(*(kinds(cell, one) for one in readers)) or {RECORD}
