"""The results of a sweep that ran in jobs, so far."""

import os
from collections.abc import Mapping, Sequence

from qdexp import device as devices
from qdexp.cell import Cell
from qdexp.record import Record, read_records
from qdexp.sweep import results
from qdexp.sweep.graph import RECORD, Node
from qdexp.sweep.manifest import CellEntry, Manifest
from qdexp.sweep.status import BLOCKED, FAILED, Status
from qdexp.sweep.worker import planned


def collect(sweep: Manifest, status: Status) -> Sequence[Record]:
    """Shows what is finished, and settles what failed."""
    os.chdir(sweep.cwd)
    with devices.elsewhere(sweep.device):
        cells = {key: planned(sweep, entry) for key, entry in sweep.cells.items()}
    settle(sweep, status, cells)
    paths = [cell.record for cell in cells.values() if cell.record.exists()]
    found = read_records(paths)
    if found:
        results.show(next(iter(cells.values())), found)
    print(status.summary(), flush=True)
    return found


def settle(sweep: Manifest, status: Status, cells: Mapping[str, Cell]) -> None:
    """A cell whose job died without a word (killed, out of memory) gets its record of failure; every record gets its mirror."""
    for key, cell in cells.items():
        if status.cell(key) in (FAILED, BLOCKED):
            cell.fail(_error(sweep, status, sweep.cells[key]))
        results.mirror_late(cell)


def _error(sweep: Manifest, status: Status, cell: CellEntry) -> dict[str, str]:
    """Of the first of the cell's stages that failed."""
    entries = [*cell.entries.values(), f"{RECORD}-{cell.name}"]
    broken = [node for node in sweep.nodes if node.entry in entries and status.nodes[node.id].state == FAILED]
    if not broken:
        return {"stage": RECORD, "type": "Lost", "message": "its jobs are gone; submit the sweep again", "traceback": ""}
    return status.registry.error(broken[0].id) or _word(broken[0], status)


def _word(node: Node, status: Status) -> dict[str, str]:
    log = status.registry.job(node.id).get("log", "")
    message = f"{status.nodes[node.id].why}; its last words are in {log}" if log else status.nodes[node.id].why
    return {"stage": node.stage, "type": "JobEnded", "message": message, "traceback": ""}
