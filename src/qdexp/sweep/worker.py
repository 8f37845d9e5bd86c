"""One job of a sweep: a stage, a part of its shards, or the end of a cell, from its frozen config to the store."""

import os

import torch

from qdexp import device as devices
from qdexp import machine, meter
from qdexp.cell import Cell, describe
from qdexp.errors import UserError
from qdexp.footprint.room import OUT_OF_MEMORY, explained
from qdexp.stages.base import Sharded, Stage
from qdexp.store import Store
from qdexp.sweep import manifest
from qdexp.sweep.freeze import planned, read_config
from qdexp.sweep.jobs import RECORD, Job
from qdexp.sweep.results import finish


def work(job: Job) -> None:
    """Does the job. An error becomes a file beside the job and the record of every cell that it ends, and is raised again:
    who waits for this job must not start."""
    os.chdir(job.cwd)
    torch.set_num_threads(job.threads)
    devices.make_repeatable()
    registry = manifest.Registry(job.out)
    try:
        _make(job)
    except Exception as error:
        told = _told(job, error)
        what = describe(job.node.stage, told)
        registry.failed(job.node.id, what)
        _fail_cells(job, what)
        if told is error:
            raise
        raise told from error
    registry.succeeded(job.node.id)


def _make(job: Job) -> None:
    node, store = job.node, Store(job.out)
    cell = Cell(read_config(job, node.cell))
    if node.stage == RECORD:
        _check(cell.name, node.id.removeprefix(f"{RECORD}-"))
        for stage in cell.stages.values():
            _demand(stage, store)
        finish(cell)
        return
    stage = cell.stages[node.stage]
    _check(stage.entry, node.entry)
    for needed in stage.inputs.values():
        _demand(needed, store)
    if node.parts == 1:
        stage.make(store)
    else:
        _add_part(job, stage, store)


def _told(job: Job, error: Exception) -> Exception:
    """The error; where memory has run out, what was planned."""
    if job.node.stage == RECORD or not isinstance(error, OUT_OF_MEMORY):
        return error
    cell = Cell(read_config(job, job.node.cell))
    return explained(cell.stages[job.node.stage], cell.config, error)


def _add_part(job: Job, stage: Stage, store: Store) -> None:
    """The shards of one part; the part that is finished last completes the entry."""
    assert isinstance(stage, Sharded)
    node, inputs = job.node, stage.input_folders(store)
    shards = stage.shards[node.part :: node.parts]

    def draw(folder: object) -> dict[str, float]:
        return meter.measure(stage.device, lambda: stage.draw(store.work(stage.entry), inputs, shards))

    if store.open(stage.entry) is None:
        store.add(stage.entry, node.part_name, draw, machine.kind(stage.device))
        if store.added(stage.entry) >= node.parts:
            stage.make(store)


def _check(found: str, planned: str) -> None:
    if found != planned:
        raise UserError(f"planned as {planned}, here it is {found}: weights, code, versions or the kind of device are not "
                        f"those of the shell that submitted; make them equal (cluster.device) and submit again")  # fmt: skip


def _demand(stage: Stage, store: Store) -> None:
    """Raises UserError where a stage that takes a job of its own is not there: its job has failed, or was never run."""
    if store.has(stage.entry):
        return  # corrupt or not: what is corrupt is made again
    if stage.quick:
        for needed in stage.inputs.values():
            _demand(needed, store)
    elif not (isinstance(stage, Sharded) and not stage.missing(store.work(stage.entry))):
        raise UserError(f"{stage.entry} is not in the store: the job that makes it has not succeeded; submit the sweep again")


def _fail_cells(job: Job, error: dict[str, str]) -> None:
    """Gives every cell of the sweep that needs the node its record of failure."""
    sweep = manifest.read(job.out, job.sweep)
    for cell in sweep.cells.values():
        if job.node.entry in cell.entries.values() or job.node.cell == cell.key:
            planned(sweep, cell).fail(error)
