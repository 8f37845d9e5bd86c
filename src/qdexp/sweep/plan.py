"""Cells -> graph of jobs."""

from collections.abc import Sequence

from qdexp import record as records
from qdexp.cell import Cell
from qdexp.stages.base import Sharded, Stage
from qdexp.store import Store
from qdexp.sweep.graph import RECORD, Node


def plan(cells: Sequence[Cell], store: Store, parts: int) -> list[Node]:
    """The missing jobs of ``cells``, in an order in which they can run; stages of shards are cut into at most ``parts``.

    A cell whose record is complete needs nothing.
    """
    missing = [cell for cell in cells if records.read_complete(cell.out, cell.name) is None]
    planner = _Planner(store, parts, {stage.entry for cell in missing for stage in cell.stages.values() if not stage.quick})
    for cell in missing:
        planner.add(cell)
    return list(planner.nodes.values())


class _Planner:
    def __init__(self, store: Store, parts: int, slow: set[str]) -> None:
        """``slow``: the entries that take a job of their own in any cell."""
        self.store, self.parts, self.slow = store, parts, slow
        self.nodes: dict[str, Node] = {}
        self._providers: dict[str, tuple[str, ...]] = {}

    def add(self, cell: Cell) -> None:
        roles = {stage.entry: role for role, stage in cell.stages.items()}
        needs = [need for stage in cell.stages.values() for need in self._ready(cell, stage, roles)]
        name = f"{RECORD}-{cell.name}"
        self.nodes[name] = Node(name, RECORD, cell.key, RECORD, name, _unique(needs))

    def _ready(self, cell: Cell, stage: Stage, roles: dict[str, str]) -> tuple[str, ...]:
        """The jobs after which ``stage`` is in the store, or, where it is quick, all that it reads."""
        if stage.entry not in self._providers:
            if self.store.has(stage.entry):
                self._providers[stage.entry] = ()
            else:
                needs = _unique([need for one in stage.inputs.values() for need in self._ready(cell, one, roles)])
                self._providers[stage.entry] = (
                    self._make(cell, stage, roles[stage.entry], needs) if stage.entry in self.slow else needs
                )
        return self._providers[stage.entry]

    def _make(self, cell: Cell, stage: Stage, role: str, needs: tuple[str, ...]) -> tuple[str, ...]:
        parts = min(self.parts, len(stage.shards)) if isinstance(stage, Sharded) else 1
        names = [stage.entry] if parts == 1 else [f"{stage.entry}.{part}-of-{parts}" for part in range(parts)]
        for part, name in enumerate(names):
            self.nodes[name] = Node(name, stage.name, cell.key, role, stage.entry, needs, part, parts)
        return tuple(names)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))
