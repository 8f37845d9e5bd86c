"""What runs in a job, whatever started it: a light object that can be pickled. The work itself is in ``worker``."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdexp import permanent
from qdexp.sweep.graph import Node


@dataclass(frozen=True)
class Job:
    """Makes ``node`` from the frozen config of its cell. Idempotent: run again, it goes on where it stopped."""

    out: Path
    cwd: Path
    sweep: str
    node: Node
    threads: int

    def __call__(self) -> None:
        with permanent.imports():
            from qdexp.sweep.worker import work  # torch takes seconds to load

        work(self)

    def checkpoint(self) -> Any:
        """What submitit queues after a preemption or a time-out: the same again."""
        from submitit.helpers import DelayedSubmission

        return DelayedSubmission(self)
