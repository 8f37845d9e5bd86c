"""The jobs of a sweep, as a graph, and what runs in one: light objects, which can be pickled. The work is in ``worker``."""

import signal
import time
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdexp import permanent
from qdexp.errors import UserError
from qdexp.layout import Layout
from qdexp.sweep.restarts import Start, there
from qdexp.sweep.shell import Shell

RECORD = "record"
"""The kind of the job that ends a cell: it makes what is quick, and the record."""


@dataclass(frozen=True)
class Node:
    """One job: ``stage`` of ``cell``, whole or the shards ``part::parts`` of it; it starts when all of ``needs`` succeeded.

    ``id`` is unique among all sweeps of an output folder: two sweeps that need the same result need the same node.
    """

    id: str
    kind: str
    cell: str
    stage: str
    entry: str
    needs: tuple[str, ...] = ()
    part: int = 0
    parts: int = 1

    @property
    def part_name(self) -> str:
        return f"{self.part}-of-{self.parts}"


_started: dict[str, Start] = {}
"""The jobs of this process, by their nodes."""


@dataclass(frozen=True)
class Job:
    """Makes ``node`` from the frozen config of its cell. Idempotent: run again, it goes on where it stopped.

    ``shell``: that of this machine with which it ends; empty for a job of a cluster, which has ``minutes``.
    """

    out: Path
    cwd: Path
    sweep: str
    node: Node
    threads: int
    shell: str = ""
    minutes: int = 0

    def __call__(self) -> None:
        if self.shell:
            Shell(Layout(self.cwd / self.out).sweep(self.sweep), self.shell).end_with()
        from qdexp.sweep.manifest import Registry

        registry, layout = Registry(self.cwd / self.out), Layout(self.cwd / self.out)
        _started[self.node.id] = Start(time.monotonic(), there(layout, self.node.entry))
        if self.minutes:
            registry.failed(self.node.id, self._cut_down)  # whoever is killed has no time to say so
        with permanent.imports():
            from qdexp.sweep.worker import work  # torch takes seconds to load

        if self.minutes:
            registry.succeeded(self.node.id)
        work(self)
        if self.minutes:
            # Slurm may send it a minute early, and while Python ends nobody would handle it: the job would count as failed
            signal.signal(signal.SIGUSR2, signal.SIG_IGN)

    @property
    def _cut_down(self) -> dict[str, str]:
        said = (f"it was ended while it loaded its code; if that took its {self.minutes} minutes, raise "
                f"cluster.stages.{self.node.kind}.minutes")  # fmt: skip
        return {"stage": self.node.stage, "type": "CutDown", "message": said, "traceback": ""}

    def checkpoint(self) -> Any:
        """Return what submitit queues after a preemption or a time-out: the same job again.

        Raises UserError, which ends the job, where it would only reach its minutes again.
        """
        from submitit.helpers import DelayedSubmission

        start = _started.get(self.node.id)
        if self.minutes and start and start.in_vain(self.minutes, there(Layout(self.cwd / self.out), self.node.entry)):
            raise UserError(f"cluster.stages.{self.node.kind}.minutes={self.minutes}: no block or shard was finished in them, "
                            f"so the job is not started again; raise them, it goes on where it stopped")  # fmt: skip
        return DelayedSubmission(self)


def depths(nodes: Iterable[Node]) -> dict[str, int]:
    """The least number of jobs that lie before each one. ``nodes`` are in an order in which they can run."""
    found: dict[str, int] = {}
    for one in nodes:
        found[one.id] = 1 + max((found[need] for need in one.needs if need in found), default=-1)
    return found


def readers_of(nodes: Sequence[Node]) -> dict[str, str]:
    """The number and kind of the jobs that wait for each one, in words."""
    kinds: dict[str, Counter[str]] = {node.id: Counter() for node in nodes}
    for node in nodes:
        for need in node.needs:
            if need in kinds:
                kinds[need][node.kind] += 1
    return {name: str(sorted(count.items())) for name, count in kinds.items()}


def dependents(nodes: Sequence[Node], ids: Iterable[str]) -> set[str]:
    """All nodes that lead from ``ids``, themselves included."""
    reached = set(ids)
    for one in nodes:
        if reached & set(one.needs):
            reached.add(one.id)
    return reached
