"""Whole quantization in full-precision passes over its calibration set: the stages themselves, between passes."""

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import partial, reduce
from pathlib import Path

from benchmarks.subject import Subject, one_pass
from benchmarks.timing import Cost, measure, ratios, seconds
from qdexp.stages.wiring import steps_of

HEADER = ["quantization", "s (CPU)", "passes", "passes by CPU time", "peak memory, MiB"]


@dataclass(frozen=True)
class Costs:
    """`stages` by name, and full-precision passes measured before, between and after them."""

    stages: dict[str, Cost]
    passes: list[Cost]

    @property
    def whole(self) -> Cost:
        """All stages, one after the other."""
        return reduce(Cost.__add__, self.stages.values())

    def in_passes(self, cost: Cost) -> list[str]:
        """By wall-clock, and by CPU time."""
        return ratios([cost] * len(self.passes), self.passes)


def quantize(subject: Subject) -> Costs:
    """Run the stages that make the quantized checkpoint from the model and its calibration rows."""
    stages = steps_of(subject.config)
    full, batches, inputs = subject.full(), subject.batches, {"calibration": subject.calibration}
    once, costs = partial(one_pass, full, batches), dict[str, Cost]()
    with tempfile.TemporaryDirectory() as root:
        passes = [measure(once, subject.device)]
        for role, stage in stages.items():
            folder = Path(root) / role
            folder.mkdir()
            costs[role] = measure(partial(stage.compute, folder, dict(inputs)), subject.device)
            inputs["before"] = folder
            passes.append(measure(once, subject.device))
    return Costs(costs, passes)


def run(subject: Subject) -> list[list[str]]:
    """Rows of the table."""
    costs = quantize(subject)

    def row(what: str, measured: Sequence[Cost], passes: Sequence[str], peak: str) -> list[str]:
        return [what, seconds(measured), *passes, peak]

    rows = {**costs.stages, "whole": costs.whole}
    shown = [row(name, [cost], costs.in_passes(cost), f"{cost.peak_mb:,.0f}") for name, cost in rows.items()]
    # no peak of a pass: the process keeps what stages before it have freed
    return [row(f"one full-precision pass over {subject.rows:,} rows", costs.passes, ["1", "1"], "-"), *shown]
