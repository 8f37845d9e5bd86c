"""Costs and their ratios.

What is compared is run in turn, A B A B ..., so that whatever else the machine does meets both alike. Wall-clock is what a
person waits; the CPU time of the process hardly feels other processes, and is the one to believe on a shared machine. With
more than one thread it adds up the threads, and on a GPU it says nothing.
"""

import gc
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from qdexp import meter

Work = Callable[[], object]


@dataclass(frozen=True)
class Cost:
    """Seconds by the clock on the wall and of the processor, and the process's peak memory in MiB meanwhile."""

    wall: float
    cpu: float
    peak_mb: float

    def __add__(self, other: "Cost") -> "Cost":
        """The one after the other."""
        return Cost(self.wall + other.wall, self.cpu + other.cpu, max(self.peak_mb, other.peak_mb))

    def less(self, part: "Cost") -> "Cost":
        """Without a part of it, measured apart."""
        return Cost(self.wall - part.wall, self.cpu - part.cpu, self.peak_mb)


@dataclass(frozen=True)
class Ratio:
    """The median of ratios, the least and the largest."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(values: Sequence[float]) -> "Ratio":
        """Of at least one value."""
        return Ratio(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.3g} [{self.low:.3g}, {self.high:.3g}]"


def measure(work: Work, device: torch.device) -> Cost:
    """What one run of `work` costs."""
    gc.collect()
    wall, cpu = time.perf_counter(), time.process_time()
    peak = meter.measure(device, lambda: (work(), None)[1])["peak_memory_mb"]
    return Cost(time.perf_counter() - wall, time.process_time() - cpu, peak)


def interleaved(repetitions: int, device: torch.device, *works: Work) -> list[list[Cost]]:
    """The costs of each work, all works once a repetition."""
    rounds = [[measure(work, device) for work in works] for _ in range(repetitions)]
    return [list(column) for column in zip(*rounds, strict=True)]


def ratios(costs: Sequence[Cost], units: Sequence[Cost]) -> list[str]:
    """The costs in units, pair by pair: by wall-clock, and by CPU time."""
    pairs = list(zip(costs, units, strict=True))
    return [
        str(Ratio.of([cost.wall / unit.wall for cost, unit in pairs])),
        str(Ratio.of([cost.cpu / unit.cpu for cost, unit in pairs])),
    ]


def seconds(costs: Sequence[Cost]) -> str:
    """Median wall-clock and CPU seconds."""
    return f"{statistics.median(cost.wall for cost in costs):.3g} ({statistics.median(cost.cpu for cost in costs):.3g})"
