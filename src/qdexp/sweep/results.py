"""The end of cells and sweeps: records, their mirrors, the table and the picture."""

import os
import sys
import tempfile
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

from hydra.conf import HydraConf
from hydra.core.hydra_config import HydraConfig
from hydra.core.utils import JobReturn, JobStatus
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from qdexp import device as devices
from qdexp import files, listing
from qdexp.cell import Cell, preflight
from qdexp.config import NO_EXTRACTOR, Tracker
from qdexp.config.learning import Learning
from qdexp.errors import UserError, of_writing
from qdexp.footprint.batches import MOST, row_bytes
from qdexp.footprint.needs import LEARNING, SAMPLING
from qdexp.footprint.places import Here
from qdexp.layout import Layout
from qdexp.listing import Line
from qdexp.record import Record, read_records, readable
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.grid import sample_grid
from qdexp.report.protocols import sampler_steps
from qdexp.report.rows import names
from qdexp.store import Store, pruning
from qdexp.sweep import idle, memory, naming
from qdexp.sweep.freeze import freeze, planned
from qdexp.sweep.jobs import RECORD, Node
from qdexp.sweep.listed import Listed
from qdexp.sweep.manifest import CellEntry, Manifest
from qdexp.sweep.shell import running
from qdexp.sweep.status import BLOCKED, FAILED, Status
from qdexp.tracking.mirror import TrackingError, mirror, written

SHOWN = 14  # images in a row of the picture
WIDTH = 120  # columns of a table that goes to a file


def announce(cells: Sequence[Cell]) -> None:
    """Says what is about to run, and what of it is in the store already."""
    stages = {stage.entry: stage for cell in cells for stage in cell.stages.values()}
    store = Store(cells[0].out)
    enlist(cells)  # first of all: what is listed is not pruned
    there = sum(store.has(entry) for entry in stages)
    print(
        f"sweep {cells[0].config.sweep}: {len(cells)} cells, {len(stages)} stages, {there} of them in {store.layout.store}",
        flush=True,
    )
    say_settings(cells)


def say_settings(cells: Iterable[Cell]) -> None:
    """Prints what others bring and the cost follows: how many steps of which sampler the cells take, and by a model's size how
    many rows a pass and an iteration have."""
    samplers, rows, untraced = dict[str, None](), defaultdict[str, defaultdict[str, set[int]]](lambda: defaultdict(set)), set()
    for cell in cells:
        config, model = cell.config, cell.config.model
        samplers[sampler_steps(config.protocol.steps, config.protocol.scheduler)] = None
        rows[model.name][SAMPLING].add(config.sampling.batch)
        for step in (named.step for named in cell.steps):
            if isinstance(step, Learning):
                rows[model.name][LEARNING].add(step.batch)
        if config.sampling.batch == MOST[SAMPLING] and row_bytes(model) is None:
            untraced.add(model.name)
    print(f"sampler  {', '.join(samplers)}")
    for name, options in rows.items():
        told = " ".join(f"{option}={','.join(map(str, sorted(found)))}" for option, found in options.items())
        of = f" of {name}" if len(rows) > 1 else ""
        why = ", as of small models: the network cannot run on shapes alone" if name in untraced else ""
        print(f"batch    {told}{of}{why}", flush=True)


def enlist(cells: Sequence[Cell]) -> None:
    """Lists the cells, and what they need of the store, in the sweep's folder: from now on nobody prunes it; what was there
    before may be gone."""
    listed = {cell.name: Line(cell.title, [one.entry for one in cell.stages.values()]) for cell in cells}
    layout = Layout(cells[0].out)
    listing.write(layout.sweep(cells[0].config.sweep), listed)
    pruning.put_back(layout)


def run(cfg: DictConfig) -> str:
    """One cell, as Hydra calls it: from composed config to record. Returns the path of the record."""
    hydra_config = HydraConfig.get()
    whole = OmegaConf.merge({"hydra": hydra_config}, cfg)
    assert isinstance(whole, DictConfig)
    devices.make_repeatable()
    if hydra_config.mode != RunMode.RUN:
        cell = preflight(freeze(whole))
        finish(cell)
        return str(cell.record)
    _check_no_sweep(hydra_config)
    with naming.named(cfg) as name:
        cell = preflight(replace(freeze(whole), sweep=name))
        idle.check([hydra_config.overrides.task], [cell])
        memory.require([cell], Store(cell.out), Here())
        enlist([cell])
        say_settings([cell])
        with running(Layout(cell.out).sweep(name)):
            record = finish(cell)
        show(cell.out, name, [record])
    return str(cell.record)


def _check_no_sweep(hydra_config: HydraConf) -> None:
    """Raises UserError where a cell is to run alone, with options that are only of use to a sweep."""
    choices = hydra_config.runtime.choices
    if hydra_config.sweeper.params:
        raise UserError(f"experiment={choices['experiment']}: a study is a sweep; add -m")
    named = [
        one for one in hydra_config.overrides.hydra if one.startswith(("hydra/launcher=", "hydra.launcher.", "hydra.sweeper."))
    ]
    if named:
        raise UserError(f"{named[0]}: is for the cells of a sweep; add -m")


def finish(cell: Cell, begin: Callable[[str], object] | None = None) -> Record:
    """Makes what is missing of the cell, and its record, and mirrors it. ``begin`` as in ``Cell.run``."""
    try:
        return cell.run(begin)
    except OSError as error:
        if (fix := of_writing(error)) is None:
            raise
        raise UserError(f"out={cell.out}: {error.strerror}; {fix}") from error
    finally:
        _mirror(cell)


def mirror_late(cell: Cell) -> None:
    """Mirrors a record that is newer than its run: of a cell whose jobs died, or which another sweep has measured."""
    path, config = cell.record, cell.config
    if path.exists() and path.stat().st_mtime > written(cell.out, config.sweep, cell.name):
        _mirror(cell)


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
    """The end of a sweep that one of Hydra's own launchers ran."""
    jobs = list(zip(cells, returns, strict=True))
    # a job may have run on another machine, whose device gives its record another name: it says which
    paths = [Path(job.return_value) if job.status == JobStatus.COMPLETED else cell.record for cell, job in jobs]
    return end(cells, paths, [cell.title for cell, job in jobs if job.status == JobStatus.FAILED])


def end(cells: Sequence[Cell], paths: Sequence[Path], failed: Sequence[str]) -> list[Record]:
    """Shows the records at ``paths``, where there are any; UserError where cells failed."""
    records = readable(path for path in paths if path.exists())
    if records:
        show(cells[0].out, cells[0].config.sweep, records)
    if failed:
        names = ", ".join(failed)
        raise UserError(f"{len(failed)} of {len(cells)} cells failed: {names}; the same command runs only these again")
    return records


def collect(sweep: Manifest, status: Status) -> Sequence[Record]:
    """Shows what is finished, and settles what failed."""
    try:
        os.chdir(sweep.cwd)
    except (OSError, ValueError) as error:
        raise UserError(f"sweep {sweep.sweep} was submitted in {sweep.cwd}, where paths of its cells begin, and which cannot "
                        f"be entered ({error}); make that folder again, or run the sweep anew") from error  # fmt: skip
    with devices.elsewhere(sweep.device):
        cells = {key: planned(sweep, entry) for key, entry in sweep.cells.items()}
    settle(sweep, status, cells)
    paths = [cell.record for cell in cells.values() if cell.record.exists()]
    found = readable(paths)
    if found:
        show(sweep.out, sweep.sweep, found)
    print(status.summary(), flush=True)
    return found


def collect_listed(sweep: Listed) -> None:
    """Shows what is finished of a sweep without jobs: its cells have settled what failed."""
    if sweep.records:
        show(sweep.store.out, sweep.sweep.name, list(sweep.records.values()))
    print(sweep.summary(), flush=True)


def settle(sweep: Manifest, status: Status, cells: Mapping[str, Cell]) -> None:
    """A cell whose job died without a word (killed, out of memory) gets its record of failure; every record gets its mirror."""
    for key, cell in cells.items():
        if status.cell(key) in (FAILED, BLOCKED):
            cell.fail(_error(sweep, status, sweep.cells[key]))
        mirror_late(cell)


def _error(sweep: Manifest, status: Status, cell: CellEntry) -> dict[str, str]:
    """The error of the first of the cell's stages that failed."""
    entries = [*cell.entries.values(), f"{RECORD}-{cell.name}"]
    broken = [node for node in sweep.nodes if node.entry in entries and status.nodes[node.id].state == FAILED]
    if not broken:
        return {"stage": RECORD, "type": "Lost", "message": "its jobs are gone; submit the sweep again", "traceback": ""}
    return status.registry.error(broken[0].id) or _word(broken[0], status)


def _word(node: Node, status: Status) -> dict[str, str]:
    log = status.registry.job(node.id).get("log", "")
    message = f"{status.nodes[node.id].why}; its last words are in {log}" if log else status.nodes[node.id].why
    return {"stage": node.stage, "type": "JobEnded", "message": message, "traceback": ""}


def show(out: Path, sweep_name: str, records: Sequence[Record]) -> None:
    """The last lines of a sweep: table and picture, where everything lies, and what comes next."""
    layout = Layout(out)
    drawn = draw(out, sweep_name, records)
    for record in records:
        print(f"record   {layout.record(record['cell'])}")
    say_how_to_load(layout, records)
    for line in drawn:
        print(line)
    say_how_to_score(record["protocol"].get("extractor", "") for record in records)
    print(f"report   python -m qdexp.report {sweep_name} --out {out}", flush=True)


def draw(out: Path, sweep_name: str, records: Sequence[Record], printed: bool = True) -> list[str]:
    """Writes a table a protocol, and the picture, into the sweep's folder. Prints the table, or not; returns the lines that say
    where they are."""
    from qdexp.report import tables  # pandas is loaded here, not for planning or by a worker

    sweep = Layout(out).sweep(sweep_name)
    sweep.folder.mkdir(parents=True, exist_ok=True)
    console, pages = Console(width=None if sys.stdout.isatty() else WIDTH), []
    protocols = defaultdict(list)
    for record in records:
        protocols[record["protocol"]["hash"]].append(record)
    for _, group in sorted(protocols.items()):
        comparison = compare(group, Evidence(out))
        if printed:
            console.print(tables.to_terminal(comparison, console.width, tables.brief(comparison)))
        pages.append(tables.to_markdown(comparison, tables.brief(comparison)))
    files.write_text(sweep.table, "\n\n".join(pages))
    pictures = [f"samples  {sweep.samples}"] if _picture(out, records, sweep.samples) else []
    return [*pictures, f"table    {sweep.table}"]


def say_how_to_load(layout: Layout, records: Sequence[Record]) -> None:
    """Prints where the checkpoint of a quantized cell is; of several, how one is loaded."""
    folders = [record["artifacts"]["checkpoint"] for record in records if "checkpoint" in record.get("artifacts", {})]
    if len(folders) == 1:
        print(f"checkpoint  {layout.out / folders[0]}")
    elif folders:
        print(f'networks qdexp.load("CELL", out="{layout.out}") in Python, CELL being the name of a record')


def say_how_to_score(extractors: Iterable[object]) -> None:
    """Prints what FID takes, where cells are measured without; ``extractors``: those of the cells' protocols."""
    if NO_EXTRACTOR in extractors:
        print("FID      takes a reference and InceptionV3's weights: protocol=fid5k protocol.reference=FILE, which "
              "python -m qdexp.metrics.build makes")  # fmt: skip


def _picture(out: Path, records: Sequence[Record], path: Path) -> Path | None:
    """Writes the first images of each complete record, a row each, to ``path``; None where there are none.

    Where a sweep's models draw images of several shapes, those of the first are shown.
    """
    complete = [record for record in records if record["status"] == "complete"]
    rows = Evidence(out).rows_of_images(zip(names(complete), complete, strict=True), SHOWN)
    if not rows:
        return None
    sample_grid(rows, path)
    return path
