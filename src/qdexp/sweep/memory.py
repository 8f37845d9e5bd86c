"""The memory of a sweep, stage by stage: printed, and refused where there is not as much."""

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
from qdexp.sweep.plan import alike, hours, macs, rounded

LEAST, LEAST_WORK = 0.05 * GB, 0.01
"""The least bytes of a stage that is shown, and its least share of the stage that works the most."""


def show(cells: Sequence[Cell], store: Store, place: Place) -> None:
    """Prints what each kind of stage takes that is to be made, of memory and of work, and which have no room in a place."""
    found: dict[str, dict[str, tuple[Need, Stage]]] = defaultdict(dict)
    work: dict[str, float] = defaultdict(float)
    for cell, stage in _missing(cells, store):
        found[stage.name][stage.entry] = need_of(stage, cell.config), stage
        work[stage.name] = max(work[stage.name], macs(cell.config, stage) or 0)
    if not found:
        return
    cluster = cells[0].config.cluster
    print(f"memory   {place.told(cells[0].device, cluster)}")
    columns = ["GPU, GB", "host, GB", "TMACs", *(["hours"] if cluster.tflops else [])]
    print(_line("stage", columns, "of what the memory"))
    unknown: dict[str, list[str]] = defaultdict(list)
    for name, needs in found.items():
        need, stage = max(needs.values(), key=lambda one: sum(map(total, shares(one[0], one[1].device))))
        device, host = shares(need, stage.device)
        for what in need.unknown:
            unknown[what].append(name)
        if total(device) + total(host) >= LEAST or work[name] > LEAST_WORK * max(work.values()):
            rows = [f"rows of learning {gigabytes(need.rows)}, where there is room"] if need.rows else []
            what = "; ".join([named(max(device, host, key=total)), *rows])
            taken = [gigabytes(total(parts)) if parts else "-" for parts in (device, host)]
            spent = [rounded(one) if one else "-" for one in (work[name] / 1e12, hours(work[name], cluster))]
            print(_line(name, [*taken, *spent][: len(columns)], what))
    for what, names in unknown.items():
        print(f"         not traced: {what} ({', '.join(names)})")
    for line in _misfits(cells, store, place):
        print(f"no room  {line}", flush=True)


def _line(stage: str, columns: Sequence[str], what: str) -> str:
    return f"         {stage:<12}{''.join(f'{one:>10}' for one in columns)}  {what}"


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
    """The stages that are to be made, each with a cell that needs it; of those that are alike one."""
    unfinished = [cell for cell in cells if cell.finished() is None]
    stages = {stage.entry: (cell, role) for cell in unfinished for role, stage in cell.stages.items()}
    missing = {alike(cell, role): (cell, cell.stages[role]) for entry, (cell, role) in stages.items() if not store.has(entry)}
    return iter(missing.values())


def kinds(cell: Cell, stage: Stage) -> set[str]:
    """The kinds of the jobs in which a stage may be made: who reads a quick one makes it."""
    if not stage.quick:
        return {stage.name}
    readers = [one for one in cell.stages.values() if stage.entry in {read.entry for read in one.inputs.values()}]
    return set().union(*(kinds(cell, one) for one in readers)) or {RECORD}
