"""State of a submitted sweep: read from the store, from the jobs' own words and from Slurm's, in that order."""

import sys
import time
from collections import defaultdict
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from rich.box import SIMPLE_HEAD
from rich.console import Console, Group
from rich.live import Live
from rich.table import Table
from rich.text import Text

from qdexp import record as records
from qdexp.errors import printable
from qdexp.store import Store
from qdexp.sweep.jobs import RECORD, Node
from qdexp.sweep.manifest import Manifest, Registry
from qdexp.sweep.queue import LIVE, LOST
from qdexp.sweep.shell import Shell, living

DONE, FAILED, BLOCKED = "done", "failed", "blocked"
ENDED = "LOST, with its shell"
WAITING = {"PENDING", "REQUEUED", "PREEMPTED", "CONFIGURING", "REQUEUE_HOLD"}
SIGNS = {DONE: ("ok", "green"), FAILED: ("err", "red"), BLOCKED: ("-", "red"), "running": ("run", ""), "waiting": (".", "dim")}
"""The words and styles of states in the table."""
LEGEND = "err failed   - lost what it needs   . waits   2/4 parts that are done"
NAME, FILE = 16, 200
"""Characters of a cell's name at the least, and of a line in a file."""

States = Callable[[list[str]], Mapping[str, str]]
"""The states that Slurm gives jobs (``Watcher.states``)."""


@dataclass(frozen=True)
class NodeState:
    """``done``, ``waiting``, ``running``, ``failed`` (with why), or ``blocked`` by one that failed."""

    state: str
    why: str = ""
    live: bool = False


class Status:
    """The state of every node of a sweep at one moment. A shell starts its jobs one after another: while it lives, the others
    wait."""

    def __init__(self, sweep: Manifest, ask: States) -> None:
        self.sweep, self.store, self.registry = sweep, Store(sweep.out), Registry(sweep.out)
        self.shells = living(self.store.layout.sweep(sweep.sweep))
        self._by_entry = defaultdict[str, list[str]](list)
        for node in sweep.nodes:
            self._by_entry[node.entry].append(node.id)
        open_nodes = [node for node in sweep.nodes if not self._done(node)]
        told = {node.id: self.registry.job(node.id) for node in open_nodes}
        self.jobs = {name: job["id"] for name, job in told.items() if "id" in job}
        said = ask(list(self.jobs.values()))
        self.nodes = dict.fromkeys((node.id for node in sweep.nodes), NodeState(DONE))
        for node in open_nodes:
            job = told[node.id]
            self.nodes[node.id] = self._state(node, said[job["id"]] if "id" in job else self._here(job))

    def _here(self, job: Mapping[str, str]) -> str | None:
        """The state of a process that some sweep's shell has started on its own machine; None where none has."""
        if "state" in job or not job:
            return job.get("state")
        return "RUNNING" if Shell(self.store.layout.sweep(job["sweep"]), job["shell"]).lives else ENDED

    def _done(self, node: Node) -> bool:
        if node.stage == RECORD:
            return self._complete(node.cell)
        if self.store.has(node.entry):
            return True
        return node.parts > 1 and self.store.layout.costs(node.entry, node.part_name).exists()

    def _complete(self, key: str) -> bool:
        """Whether the record of a cell holds all that the sweep measures of it."""
        cell = self.sweep.cells[key]
        return records.read_complete(self.sweep.out, cell.name, cell.keys) is not None

    def _state(self, node: Node, said: str | None) -> NodeState:
        error = self.registry.error(node.id)
        if said in LIVE:
            return NodeState("waiting" if said in WAITING else "running", said, live=True)
        if error:
            return NodeState(FAILED, f"{error['type']}: {_last_line(error['message'])}")
        if any(self.nodes[need].state in (FAILED, BLOCKED) for need in node.needs if need in self.nodes):
            return NodeState(BLOCKED)
        if node.stage == RECORD and (why := records.unreadable(self.sweep.out, self.sweep.cells[node.cell].name)):
            return NodeState(FAILED, why)
        if said == LOST:
            return NodeState(FAILED, f"neither the queue nor accounting knows its job {self.jobs[node.id]}")
        if said is not None:
            return NodeState(FAILED, f"its job ended as {said}")
        return NodeState("waiting", live=True) if self.shells else NodeState(FAILED, "it was never started")

    @property
    def live(self) -> bool:
        """Whether anything still waits or runs."""
        return any(state.live for state in self.nodes.values())

    def cell(self, key: str) -> str:
        """The state of a whole cell."""
        if self._complete(key):
            return DONE
        ends = self._by_entry[f"{RECORD}-{self.sweep.cells[key].name}"]
        return self.nodes[ends[0]].state if ends else FAILED

    def failures(self) -> dict[str, str]:
        """Why nodes failed, by node."""
        return {name: state.why for name, state in self.nodes.items() if state.state == FAILED}

    def table(self, width: int = FILE) -> Group:
        """Cells x stages, in ``width`` characters; below it what failed, and about how long the rest takes."""
        title = Text(
            f"{self.sweep.sweep}: {len(self.sweep.cells)} cells"
        )  # a Text is shown as it is, a str has its [words] read
        table = Table(title=title, box=SIMPLE_HEAD, padding=0, caption=LEGEND)
        stages = list(dict.fromkeys(stage for cell in self.sweep.cells.values() for stage in cell.entries))
        each = (width - NAME - 2) // (len(stages) + 1) - 1
        table.add_column("cell", min_width=NAME)
        for name in (*stages, RECORD):
            table.add_column(Text(name), overflow="crop", no_wrap=True, max_width=max(each, 3))
        for cell in self.sweep.cells.values():
            shown = [self._sign(cell.entries.get(stage)) for stage in stages]
            row = Text(f"{cell.label} {cell.name.rpartition('-')[2]}")
            table.add_row(row, *shown, Text(*SIGNS[self.cell(cell.key)]))
        lines = [printable(f"{name}: {why}") for name, why in self.failures().items()]
        return Group(table, *map(Text, lines), Text(self.summary()))

    def _sign(self, entry: str | None) -> Text:
        if entry is None:
            return Text()
        own = [self.nodes[name].state for name in self._by_entry[entry]]
        done = own.count(DONE)
        if self.store.has(entry) or (own and done == len(own)):
            return Text(*SIGNS[DONE])
        worst = next((state for state in (FAILED, BLOCKED, "running", "waiting") if state in own), "waiting")
        word, style = SIGNS[worst]
        return Text(word if len(own) < 2 else f"{done}/{len(own)}", style)

    def summary(self) -> str:
        """The numbers of cells and jobs by state, and the time left if the rest goes on as fast as what is done."""
        states = [state.state for state in self.nodes.values()]
        done = sum(self.cell(key) == DONE for key in self.sweep.cells)
        counts = [f"{states.count(one)} {one}" for one in (DONE, "running", "waiting", FAILED, BLOCKED) if one in states]
        text = f"{done}/{len(self.sweep.cells)} cells complete; jobs: {', '.join(counts) or 'none were needed'}"
        left = states.count("running") + states.count("waiting")
        if left and states.count(DONE):
            seconds = (time.time() - self.sweep.time) / states.count(DONE) * left
            if seconds > 0:  # a clock may have been set back
                text += f"; about {seconds / 60:.0f} min left at this pace"
        if self.shells:
            text += f"; run by {', '.join(shell.place for shell in self.shells)}"
        return text


class Look(Protocol):
    """The state of a sweep at one moment, of whatever kind."""

    @property
    def live(self) -> bool: ...

    def table(self, width: int = FILE) -> Group: ...


def _last_line(text: str) -> str:
    return (text.strip().splitlines() or [""])[-1]


def log_of(sweep: Manifest, cell: str) -> list[Path]:
    """The log files of a cell's jobs, in the order of its stages. ``cell`` is a key or (part of) the record's name."""
    found = [entry for key, entry in sweep.cells.items() if key == cell or cell in entry.name]
    wanted = {entry for one in found for entry in one.entries.values()} | {f"{RECORD}-{one.name}" for one in found}
    registry = Registry(sweep.out)
    logs = [registry.job(node.id).get("log") for node in sweep.nodes if node.entry in wanted]
    return [Path(log) for log in logs if log]


def show(look: Callable[[], Look], every: float | None, console: Any = None) -> None:
    """Prints the table; with ``every`` keeps it up to date until nothing waits or runs any more."""
    console = console or Console(width=None if sys.stdout.isatty() else FILE)
    status = look()
    if every is None:
        console.print(status.table(console.width))
        return
    with Live(status.table(console.width), console=console, refresh_per_second=2) as live:
        while status.live:
            time.sleep(every)
            status = look()
            live.update(status.table(console.width))
