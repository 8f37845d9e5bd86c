"""The memory that a sweep takes, stage by stage: told, and refused where there is not as much."""

from collections import defaultdict
from collections.abc import Iterator, Sequence

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.footprint.needs import Need, need_of, total
from qdexp.footprint.room import GB, Room, gigabytes, misfits, named, shares
from qdexp.stages.base import Stage
from qdexp.store import Store
from qdexp.sweep.jobs import RECORD

LEAST = 0.05 * GB
"""Of a stage that is shown."""


def show(cells: Sequence[Cell], store: Store, on_cluster: bool) -> None:
    """Prints what each kind of stage takes that is to be made, and which have no room: on the cluster, or on this machine."""
    found: dict[str, dict[str, tuple[Need, Stage]]] = defaultdict(dict)
    for cell, stage in _missing(cells, store):
        found[stage.name][stage.entry] = need_of(stage, cell.config), stage
    if not found:
        return
    print(f"memory   {_rooms(cells[0], on_cluster)}")
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
    for line in _misfits(cells, store, on_cluster):
        print(f"no room  {line}", flush=True)


def require(cells: Sequence[Cell], store: Store, on_cluster: bool = False) -> None:
    """Raises UserError where a stage that is to be made takes more than the job on the cluster has, or than is free here."""
    lines = _misfits(cells, store, on_cluster)
    if lines:
        raise UserError(*lines)


def _misfits(cells: Sequence[Cell], store: Store, on_cluster: bool) -> list[str]:
    lines: dict[str, None] = {}
    for cell, stage in _missing(cells, store):
        need = need_of(stage, cell.config)
        for kind in sorted(_kinds(cell, stage)) if on_cluster else [stage.name]:
            room = Room.of_job(cell.config.cluster, kind) if on_cluster else Room.here(stage.device)
            lines |= dict.fromkeys(misfits(stage.name, need, stage.device, room))
    return list(lines)


def _missing(cells: Sequence[Cell], store: Store) -> Iterator[tuple[Cell, Stage]]:
    """The stages that are to be made, each once, with a cell that needs it."""
    stages = {stage.entry: (cell, stage) for cell in cells if cell.finished() is None for stage in cell.stages.values()}
    return ((cell, stage) for entry, (cell, stage) in stages.items() if not store.has(entry))


def _kinds(cell: Cell, stage: Stage) -> set[str]:
    """The kinds of the jobs in which a stage may be made: who reads a quick one makes it."""
    if not stage.quick:
        return {stage.name}
    readers = [one for one in cell.stages.values() if stage.entry in {read.entry for read in one.inputs.values()}]
    return set().union(*(_kinds(cell, one) for one in readers)) or {RECORD}


def _rooms(cell: Cell, on_cluster: bool) -> str:
    if not on_cluster:
        room = Room.here(cell.device)
        free = [f"{gigabytes(size)} GB {told}" for size, told in
                ((room.device, room.device_told), (room.host, room.host_told)) if size is not None]  # fmt: skip
        return ", ".join(free)
    cluster = cell.config.cluster
    asked = sorted({one.memory_gb for one in cluster.stages.values() if one.memory_gb is not None})
    gpu = "GPUs of unknown memory (cluster.gpu_memory_gb)"
    if cluster.gpu_memory_gb is not None:
        gpu = f"GPUs of {cluster.gpu_memory_gb:g} GB (cluster.gpu_memory_gb)"
    host = f"{' or '.join(f'{one:g}' for one in asked)} GB (cluster.stages)" if asked else "unknown memory (cluster.stages)"
    return f"{gpu}, jobs with {host}"
