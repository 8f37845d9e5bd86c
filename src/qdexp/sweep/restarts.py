"""Whether a job that has reached its minutes is worth starting again: not where it has got nowhere since it was started."""

import time
from dataclasses import dataclass

from qdexp.layout import Layout, is_hidden

WARNING = 90
"""Seconds before its end at which a job is warned, at most: a tenth of its minutes."""
NEARLY = 0.8
"""The share of the time until the warning below which a job was preempted rather than slow."""


def warning(minutes: int) -> int:
    """Seconds before its end at which a job is warned that has so many minutes."""
    return min(WARNING, minutes * 60 // 10)


@dataclass(frozen=True)
class Start:
    """The start of a job, and what there was of the entry that it makes."""

    time: float
    there: object

    def in_vain(self, minutes: int, there: object) -> bool:
        """Whether it has reached its minutes, and no block, shard or stage is finished since."""
        due = NEARLY * (minutes * 60 - warning(minutes))
        return time.monotonic() - self.time >= due and there == self.there


def there(layout: Layout, entry: str) -> object:
    """The finished parts of an entry in the making, and the number of other entries: a job may make several."""
    files = sorted((str(path), path.stat().st_mtime_ns) for path in layout.work(entry).rglob("*") if not is_hidden(path))
    log = layout.executions
    return files, log.stat().st_size if log.exists() else 0
