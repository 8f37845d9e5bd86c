"""What qdexp itself costs a cell: its jobs as a cluster runs them, less what their stages measure of their own work.

Left are keys and digests, the store, the record and its mirror. The jobs run in one process, so imports do not count; a first
run, for what is imported late, is not counted either.
"""

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from functools import reduce
from pathlib import Path

import torch

from benchmarks.subject import Subject
from benchmarks.timing import Cost, seconds
from qdexp import meter
from qdexp.cell import Cell
from qdexp.config import Config
from qdexp.sweep.jobs import Job
from qdexp.sweep.launch import Frozen

HEADER = ["jobs of one cell", "whole, s (CPU)", "stages, s (CPU)", "qdexp's own, s (CPU)", "of one job at most, s (CPU)"]
NOTHING = Cost(0.0, 0.0, 0.0)


def run(subject: Subject, repetitions: int) -> list[list[str]]:
    """The row of the table."""
    config = few(subject.config, subject.rows)
    found = [jobs(Cell(replace(config, out=str(subject.folder / f"run-{turn}")))) for turn in range(repetitions + 1)][1:]
    wholes, stages = (
        [total([whole for whole, _ in run]) for run in found],
        [total([stage for _, stage in run]) for run in found],
    )
    own = [whole.less(stage) for whole, stage in zip(wholes, stages, strict=True)]
    most = [max((whole.less(stage) for whole, stage in run), key=lambda cost: cost.cpu) for run in found]
    return [[f"{len(found[0])} jobs, {config.protocol.n} images", *map(seconds, (wholes, stages, own, most))]]


def few(config: Config, rows: int) -> Config:
    """The cell on as many images and trajectories as there are rows: its stages are quick, what is around them is the same."""
    least = {"iterations": 1, "heldout": rows // 4}
    steps = {slot: node | {name: least[name] for name in node.keys() & least} for slot, node in config.quantizer.filled.items()}
    protocol = replace(config.protocol, n=max(rows, 10), heldout=min(config.protocol.heldout, rows))
    quantizer, trajectory = replace(config.quantizer, steps=steps), replace(config.trajectory, samples=rows)
    calib = replace(config.calib, rows=max(1, rows // config.calib.timesteps))
    return replace(config, protocol=protocol, calib=calib, quantizer=quantizer, trajectory=trajectory)


def jobs(cell: Cell) -> list[tuple[Cost, Cost]]:
    """The cost of each job of the cell, and of the stages in it."""
    sweep = Frozen([cell])
    sweep.write()
    found = []
    for node in sweep.nodes:
        job = Job(sweep.out, Path.cwd(), sweep.config.sweep, node, torch.get_num_threads())
        with stage_costs() as stages:
            wall, cpu = time.perf_counter(), time.process_time()
            job()
            whole = Cost(time.perf_counter() - wall, time.process_time() - cpu, 0.0)
        found.append((whole, total(stages)))
    return found


@contextlib.contextmanager
def stage_costs() -> Iterator[list[Cost]]:
    """Listens to what stages measure of themselves, and adds the CPU time, which they do not keep."""
    theirs, found = meter.measure, list[Cost]()

    def listening(device: torch.device, work: Callable[[], None]) -> dict[str, float]:
        before = time.process_time()
        costs = theirs(device, work)
        found.append(Cost(costs["seconds"], time.process_time() - before, costs["peak_memory_mb"]))
        return costs

    meter.measure = listening
    try:
        yield found
    finally:
        meter.measure = theirs


def total(costs: Sequence[Cost]) -> Cost:
    return reduce(Cost.__add__, costs, NOTHING)
