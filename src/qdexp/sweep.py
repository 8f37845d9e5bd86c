"""A sweep, from composed configs to the table at its end."""

import errno
import json
import sys
import tempfile
from collections.abc import Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf, open_dict
from rich.console import Console

from qdexp import device as devices
from qdexp import files
from qdexp.cell import Cell, preflight
from qdexp.config import Config, Tracker
from qdexp.errors import UserError
from qdexp.record import Record
from qdexp.record import path as record_path
from qdexp.report.grid import sample_grid
from qdexp.report.records import read_records
from qdexp.report.sources import CELLS
from qdexp.report.table import ladder_table, row_names, to_markdown
from qdexp.sampling.shards import read_shards
from qdexp.store import Store
from qdexp.tracking.mirror import TrackingError, mirror

SHOWN = 14  # images in a row of the picture
WIDTH = 110  # columns of a table that goes to a file


def freeze(cfg: DictConfig) -> Config:
    """The checked config of a composed cell. Its method is named after its parts where the command named only those.

    Raises UserError where a named quantizer or calib contradicts a named method.
    """
    overrides = cfg.hydra.overrides.task
    choices = cfg.hydra.runtime.choices
    named = {name.lstrip("+"): value for name, _, value in (override.partition("=") for override in overrides)}
    parts = [part for part in ("quantizer", "calib") if part in named]
    plain = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
    if "method" in named:
        for group, fixed in _fixed_by(named["method"], cfg).items():
            if named.get(group, fixed) != fixed:
                raise UserError(f"{group}={named[group]}: method={named['method']} fixes {group}={fixed}; "
                                f"leave one of the two out")  # fmt: skip
    elif parts:
        with open_dict(plain):
            plain.method = f"{choices.quantizer}-{choices.calib}"
    return Config.of(plain)


def _fixed_by(method: str, cfg: DictConfig) -> dict[str, str]:
    """The quantizer and calib that a method's file overrides, in our config folder or in one of the user's."""
    folders = [Path(source.path) for source in cfg.hydra.runtime.config_sources if source.schema == "file"]
    paths = [folder / "method" / f"{method}.yaml" for folder in folders]
    found = next((OmegaConf.to_container(OmegaConf.load(path)) for path in paths if path.is_file()), {})
    assert isinstance(found, dict)
    entries = [entry for entry in found.get("defaults", []) if isinstance(entry, dict)]
    return {str(group).removeprefix("override").strip(" /"): choice for entry in entries for group, choice in entry.items()}


def distinct(composed: Sequence[DictConfig]) -> list[tuple[int, Cell]]:
    """Every cell checked; those that come out equal kept once, with their place in ``composed``."""
    cells: dict[str, tuple[int, Cell]] = {}
    for index, cfg in enumerate(composed):
        cell = preflight(freeze(cfg))
        cells.setdefault(cell.key, (index, cell))
    return list(cells.values())


def announce(cells: Sequence[Cell]) -> None:
    """Says what is about to run, and what of it is in the store already."""
    stages = {stage.entry: stage for cell in cells for stage in cell.stages.values()}
    store = Store(cells[0].out)
    there = sum(store.open(entry) is not None for entry in stages)
    enlist(cells)
    print(
        f"sweep {cells[0].config.sweep}: {len(cells)} cells, {len(stages)} stages, {there} of them in {store.root}", flush=True
    )


def enlist(cells: Sequence[Cell]) -> None:
    """Writes the cells' names and labels into the sweep's folder, beside those that ran under its name before."""
    path = cells[0].out / "sweeps" / cells[0].config.sweep / CELLS
    path.parent.mkdir(parents=True, exist_ok=True)
    before = json.loads(path.read_text()) if path.exists() else {}
    files.write_text(path, json.dumps(before | {cell.name: cell.label for cell in cells}, indent=1))


def run(cfg: DictConfig) -> str:
    """One cell, as Hydra calls it: from composed config to record. Returns the path of the record."""
    hydra_config = HydraConfig.get()
    whole = OmegaConf.merge({"hydra": hydra_config}, cfg)
    assert isinstance(whole, DictConfig)
    alone = hydra_config.mode == RunMode.RUN
    if alone and hydra_config.sweeper.params:
        raise UserError(f"experiment={hydra_config.runtime.choices['experiment']}: a study is a sweep; add -m")
    cell = preflight(freeze(whole))
    devices.make_repeatable()
    if alone:
        enlist([cell])
    try:
        record = cell.run()
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT, errno.EROFS):
            raise
        mend = "free some space or choose another folder; finished stages are kept"
        raise UserError(f"out={cell.out}: {error.strerror}; {mend}") from error
    finally:
        _mirror(cell)
    if alone:
        show(cell, [record])
    return str(cell.record)


def _mirror(cell: Cell) -> None:
    """Copies the cell's record, if it got one, to the tracker. A tracker that fails takes nothing with it."""
    tracker: Tracker = cell.config.tracker
    path = cell.record
    if tracker.name == "none" or not path.exists():
        return
    try:
        record = read_records([path])[0]
        with tempfile.TemporaryDirectory() as folder:
            grid = _picture(cell.out, [record], Path(folder) / "samples.png")
            place = (cell.out, tracker.project, tracker.mode, tracker.entity)
            mirror(record, cell.config.sweep, *place, out=cell.out, grid=grid)
    except (TrackingError, UserError, OSError) as error:
        print(f"warning: {error}", flush=True)


def conclude(cells: Sequence[Cell], returns: Sequence[JobReturn]) -> list[Record]:
    """The end of a sweep: table, picture and paths of the records; UserError where a cell failed."""
    jobs = list(zip(cells, returns, strict=True))
    # a job may have run on another machine, whose device gives its record another name: it says which
    paths = [Path(job.return_value) if job.status == JobStatus.COMPLETED else cell.record for cell, job in jobs]
    records = read_records([path for path in paths if path.exists()])
    show(cells[0], records)
    failed = [cell.label for cell, job in jobs if job.status == JobStatus.FAILED]
    if failed:
        names = ", ".join(failed)
        raise UserError(f"{len(failed)} of {len(cells)} cells failed: {names}; the same command runs only these again")
    return records


def show(cell: Cell, records: Sequence[Record]) -> None:
    """Prints a table a protocol and writes it, with the picture, into the sweep's folder."""
    folder = cell.out / "sweeps" / cell.config.sweep
    folder.mkdir(parents=True, exist_ok=True)
    console, pages = Console(width=None if sys.stdout.isatty() else WIDTH), []
    for _, group in groupby(sorted(records, key=_protocol_hash), key=_protocol_hash):
        comparable = list(group)
        console.print(ladder_table(comparable))
        pages.append(to_markdown(comparable))
    files.write_text(folder / "table.md", "\n\n".join(pages))
    for record in records:
        print(f"record   {record_path(cell.out, record['cell'])}")
    if _picture(cell.out, records, folder / "samples.png"):
        print(f"samples  {folder / 'samples.png'}")
    print(f"table    {folder / 'table.md'}")
    print(f"report   python -m qdexp.report {cell.config.sweep} --out {cell.out}", flush=True)


def _protocol_hash(record: Record) -> Any:
    return record["protocol"]["hash"]


def _picture(out: Path, records: Sequence[Record], path: Path) -> Path | None:
    """Writes the first images of each complete record, a row each, to ``path``; None where there are none.

    Where a sweep's models draw images of several shapes, those of the first are shown.
    """
    complete = [record for record in records if record["status"] == "complete"]
    rows: list[tuple[str, np.ndarray]] = []
    for record, name in zip(complete, row_names(complete), strict=True):
        images = next(read_shards(out / record["artifacts"]["samples"], "images"), None)
        if images is not None and (not rows or images.shape[1:] == rows[0][1].shape[1:]):
            rows.append((name, images[:SHOWN].numpy()))
    if not rows:
        return None
    sample_grid(rows, path)
    return path
