"""The state of a sweep that has no jobs, but runs in the shell that started it: read from its list of cells, and the store."""

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.table import Table
from rich.text import Text

from qdexp import listing
from qdexp import record as records
from qdexp.errors import printable
from qdexp.layout import Sweep, stage_and_key
from qdexp.record import Record
from qdexp.store import Store
from qdexp.sweep.shell import living

UNREADABLE = "unreadable"
SIGNS = {"complete": ("ok", "green"), "failed": ("err", "red"), UNREADABLE: ("cannot be read", "red")}
"""The words of the table for a state, and their style."""


class Listed:
    """The cells of a sweep at one moment, and the shells that run it."""

    def __init__(self, sweep: Sweep) -> None:
        self.sweep, self.store, self.shells = sweep, Store(sweep.layout.out), living(sweep)
        self.cells = listing.read(sweep)
        self.records = {name: record for name in self.cells if (record := records.read(self.store.out, name)) is not None}
        others = (name for name in self.cells if name not in self.records)
        self.unreadable = {name: why for name in others if (why := records.unreadable(self.store.out, name))}

    @property
    def live(self) -> bool:
        return bool(self.shells)

    def table(self, width: int = 0) -> Group:
        """A line per cell: how many of its stages are there, and its record; below it what failed."""
        table = Table(title=Text(f"{self.sweep.name}: {len(self.cells)} cells"), box=SIMPLE_HEAD, padding=(0, 1, 0, 0))
        for title in ("cell", "stages", "record"):
            table.add_column(title)
        for name, cell in self.cells.items():
            there = sum(self.store.has(entry) for entry in cell.entries)
            state = self._state(name)
            words = SIGNS.get(state, (".", "dim"))
            table.add_row(Text(f"{cell.label} {name.rpartition('-')[2]}"), f"{there}/{len(cell.entries)}", Text(*words))
        failed = [_error(record) for name, record in self.records.items() if self._state(name) == "failed"]
        unreadable = [printable(why) for why in self.unreadable.values()]
        return Group(table, *map(Text, failed + unreadable), Text(self.summary()))

    def _state(self, name: str) -> str:
        """The state in a cell's record, or that it cannot be read; empty where there is none, or one without a metric."""
        record = self.records.get(name, {"status": UNREADABLE if name in self.unreadable else ""})
        wanted = {stage_and_key(entry)[1] for entry in self.cells[name].entries}
        return "" if record["status"] == "complete" and not wanted <= set(record["keys"].values()) else str(record["status"])

    def summary(self) -> str:
        """The number of complete cells, and what runs the others."""
        done = sum(self._state(name) == "complete" for name in self.cells)
        text = f"{done}/{len(self.cells)} cells complete"
        if self.shells:
            return f"{text}; run by {', '.join(shell.place for shell in self.shells)}"
        return text if done == len(self.cells) else f"{text}; nothing runs it now, and the same command goes on"


def _error(record: Record) -> str:
    error = record.get("error", {})
    message = (str(error.get("message", "")).splitlines() or [""])[0]
    return printable(f"{record['cell']}: {error.get('stage', '?')}: {error.get('type', '?')}: {message}")
