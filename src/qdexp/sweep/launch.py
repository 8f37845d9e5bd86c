"""The work of qdexp's launchers with the checked cells of a sweep."""

import json
import time
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch

from qdexp import device as devices
from qdexp import files, machine, progress, provenance
from qdexp.cell import Cell
from qdexp.config import Cluster
from qdexp.errors import UserError
from qdexp.footprint.places import Here, OnCluster, Place
from qdexp.layout import Sweep
from qdexp.methods.recipe import SLOTS
from qdexp.record import Record
from qdexp.stages.base import Stage
from qdexp.store import Store
from qdexp.sweep import manifest, memory, queue, results, snapshot
from qdexp.sweep.jobs import RECORD, Job, Node
from qdexp.sweep.local import Local
from qdexp.sweep.manifest import CellEntry, Manifest, Registry
from qdexp.sweep.pace import estimate
from qdexp.sweep.plan import plan
from qdexp.sweep.shell import Shell, running
from qdexp.sweep.slurm import Slurm
from qdexp.sweep.so_far import SoFar
from qdexp.sweep.status import Status


def planned_for(cluster: Any) -> AbstractContextManager[None]:
    """Cells that are made within are those of the cluster's machines; ``auto``: those of this one."""
    return nullcontext() if cluster.device == "auto" else devices.elsewhere(cluster.device)


def sequential(cells: Sequence[Cell]) -> list[Record]:
    """One cell after another, in this process; a cell that fails stops no other."""
    devices.make_repeatable()
    memory.require(cells, Store(cells[0].out), Here())
    results.announce(cells)
    store = Store(cells[0].out)
    print(f"cost     {estimate(cells, plan(cells, store, parts=1), store, Here())}", flush=True)
    start, failed, folder, so_far = time.monotonic(), [], store.layout.sweep(cells[0].config.sweep), SoFar(cells)
    with running(folder), progress.bar("cells", len(cells)) as bar:
        for number, cell in enumerate(cells):
            place = f"[{number + 1}/{len(cells)}]"
            if not bar.shown:
                print(f"{place} {_left(start, number, len(cells))}", end="", flush=True)
            try:
                results.finish(cell, partial(_advance, bar, number, cell, f"{place} {cell.title}"))
            except BrokenPipeError:
                raise
            except Exception as error:
                print(f"  failed: {type(error).__name__}: {' '.join(str(error).split())}", flush=True)
                failed.append(cell.title)
            else:
                so_far.add(cell)
    return results.end(cells, [cell.record for cell in cells], failed)


def _advance(bar: progress.Bar, done: int, cell: Cell, title: str, stage: str) -> None:
    """A cell counts by the share of its stages that are there."""
    stages = list(cell.stages)
    bar.update(done + stages.index(stage) / len(stages), f"{title}  {stage}")


def _left(start: float, done: int, cells: int) -> str:
    """The time that the rest takes if it goes on like this; empty for the first cell, which tells nothing yet."""
    seconds = (time.monotonic() - start) / max(done, 1) * (cells - done)
    return f"about {seconds / 60:.0f} min left  " if done and seconds > 60 else ""


JOBS = 2
"""Processes at once on a machine without GPUs, where it has as many cores."""


class Frozen:
    """A sweep whose cells run in jobs: its plan, its frozen configs, its manifest."""

    def __init__(self, cells: Sequence[Cell]) -> None:
        self.cells, self.config = {cell.key: cell for cell in cells}, cells[0].config
        known = {stage.name for cell in cells for stage in cell.stages.values()} | {*SLOTS, RECORD}
        known |= {name for kind in Stage.__subclasses__() if isinstance(name := kind.__dict__["name"], str)}
        for stage in self.cluster.stages.keys() - known - {"default"}:
            raise UserError(f"cluster.stages.{stage}: no stage is called so; there are {', '.join(sorted(known))}")
        bound = sorted({role for cell in cells for role, stage in cell.stages.items() if not stage.portable})
        if bound:
            raise UserError(f"metric.{bound[0]}: belongs to the machine that measures it, with nothing else running, and which "
                            f"runs a job is not known; leave {' and '.join(bound)} out here, and run the same command with "
                            f"them and without hydra/launcher on that machine: it finds all else in the store")  # fmt: skip
        self.out = Path(self.config.out)
        if "%" in str(self.out.resolve()):
            raise UserError(f"out={self.out}: jobs write their logs below it, where % stands for numbers; choose a folder "
                            f"without it")  # fmt: skip
        self.store = Store(self.out)
        self.nodes = plan(cells, self.store, self.cluster.parts)

    @property
    def cluster(self) -> Cluster:
        return self.config.cluster

    def describe(self, place: Place) -> None:
        """Prints what would run in a place, what is there already, and what it costs."""
        entries = {stage.entry for cell in self.cells.values() for stage in cell.stages.values()}
        there = sum(self.store.has(entry) for entry in entries)
        ready = len(self.cells) - sum(node.stage == RECORD for node in self.nodes)
        kinds = {kind: sum(node.kind == kind for node in self.nodes) for kind in dict.fromkeys(n.kind for n in self.nodes)}
        print(f"sweep {self.config.sweep}: {len(self.cells)} cells, {ready} of them complete; "
              f"{len(entries)} stages, {there} of them in {self.store.layout.store}")  # fmt: skip
        results.say_settings(self.cells.values())
        print(f"jobs     {', '.join(f'{count} {kind}' for kind, count in kinds.items()) or 'none'}")
        print(f"cost     {estimate(list(self.cells.values()), self.nodes, self.store, place)}", flush=True)
        results.say_how_to_score(cell.config.protocol.extractor for cell in self.cells.values())

    def write(self) -> Path:
        """Freezes: from here on no YAML and no code that is edited changes anything. Returns the copy of the code."""
        folder = self.folder
        results.enlist(list(self.cells.values()))
        self.nodes = plan(list(self.cells.values()), self.store, self.cluster.parts)  # from now on nothing is pruned of it
        copy = snapshot.take(folder.code, self.cells.values())
        for key, cell in self.cells.items():
            path = folder.config(key)
            path.parent.mkdir(parents=True, exist_ok=True)
            files.write_text(path, json.dumps(asdict(cell.config)))
        entries = {
            key: CellEntry(key, cell.name, cell.title, {name: stage.entry for name, stage in cell.stages.items()})
            for key, cell in self.cells.items()
        }
        kind, command = next(iter(self.cells.values())).device.type, provenance.command()
        Manifest(self.config.sweep, self.out, Path.cwd(), kind, entries, self.nodes, time.time(), command).write()
        return copy

    @property
    def folder(self) -> Sweep:
        return self.store.layout.sweep(self.config.sweep)

    def job(self, node: Node, shell: Shell | None = None) -> Job:
        wants = self.cluster.resources(node.kind)
        there = (self.out, Path.cwd(), self.config.sweep, node, wants.cpus)
        return Job(*there, minutes=wants.minutes) if shell is None else Job(*there, shell.name)

    def done(self, node: Node) -> bool:
        if node.stage == RECORD:
            return self.cells[node.cell].finished() is not None
        return self.store.has(node.entry)


def slurm(cells: Sequence[Cell]) -> None:
    """Submits what is missing and returns."""
    sweep = Frozen(cells)
    sweep.describe(OnCluster())
    memory.require(cells, sweep.store, OnCluster())
    copy = sweep.write()
    cluster = replace(sweep.cluster, setup=[*sweep.cluster.setup, *snapshot.setup(copy)])
    submitter = Slurm(sweep.out, sweep.config.sweep, cluster, sweep.job, sweep.done)
    new, left = submitter.submit(sweep.nodes), submitter.left
    queued = len(sweep.nodes) - len(new) - left
    print(f"submitted {len(new)} jobs" + (f"; {queued} were in the queue already, or done meanwhile" if queued else ""))
    if left:
        print(f"left      {left:,} jobs for which the cluster has no room now (MaxJobCount); run the same command again later")
    if sweep.nodes:
        print(f"look      python -m qdexp.sweep status {sweep.config.sweep} --out {sweep.out}", flush=True)


def local(cells: Sequence[Cell], jobs: int | None, jobs_per_gpu: int = 1) -> list[Record]:
    """Runs what is missing here, ``jobs`` processes at once, of which ``jobs_per_gpu`` share a GPU, and waits for it.

    Raises UserError where the GPUs do not take so many.
    """
    jobs, gpus = _at_once(cells, jobs, jobs_per_gpu)
    sweep, here, so_far = Frozen(cells), shared(cells, jobs, jobs_per_gpu), SoFar(cells)
    sweep.describe(here)
    memory.require(cells, sweep.store, here)

    def ended(node: Node, failed: bool) -> None:
        if node.stage == RECORD and not failed:
            so_far.add(sweep.cells[node.cell])

    with snapshot.running(sweep.write()), running(sweep.folder) as shell:
        Local(Registry(sweep.out), sweep.config.sweep, jobs, gpus, sweep.job, shell, ended).run(sweep.nodes)
    written = manifest.read(sweep.out, sweep.config.sweep)
    results.settle(written, Status(written, queue.Watcher(grace=0).states), sweep.cells)
    incomplete = [cell for cell in cells if cell.finished() is None]
    return results.end(cells, [cell.record for cell in cells], [cell.title for cell in incomplete])


def _at_once(cells: Sequence[Cell], jobs: int | None, jobs_per_gpu: int) -> tuple[int, list[str]]:
    """The number of processes, and their GPUs, each as often as it has processes."""
    gpus = devices.visible() * jobs_per_gpu if cells[0].device.type == "cuda" else []
    if gpus and jobs is not None and jobs > len(gpus):
        raise UserError(f"hydra.launcher.jobs={jobs}: the GPUs here take {len(gpus)}; choose at most as many, or let more "
                        f"share one by hydra.launcher.jobs_per_gpu")  # fmt: skip
    return jobs or len(gpus) or min(JOBS, machine.describe(torch.device("cpu"))["cores"]), gpus


def shared(cells: Sequence[Cell], jobs: int | None, jobs_per_gpu: int) -> Here:
    """This machine as the processes of ``local`` share it."""
    jobs, _ = _at_once(cells, jobs, jobs_per_gpu)
    return Here(jobs, min(jobs, jobs_per_gpu), cells[0].config.cluster.resources("default").cpus)


def dry(cells: Sequence[Cell], place: Place) -> None:
    """Says what a launcher would do in a place, and does nothing."""
    sweep = Frozen(cells)
    sweep.describe(place)
    memory.show(cells, sweep.store, place)
