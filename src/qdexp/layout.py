"""Paths in an output folder. No other module knows them; the files within an entry are its stage's affair.

executions.jsonl                one line for every entry that was really computed
records/CELL.json               one record per cell
store/
    ENTRY/manifest.json         an entry is STAGE-KEY, a stage's result: its costs, what it was made of, its files' digests
    ENTRY/...                   the stage's files
    .locks/ENTRY                held while an entry is made
    .work-ENTRY/                the entry in the making, which outlives a killed process
    .work-ENTRY/.begun-PART     this part of it was begun
    .work-ENTRY/.costs-PART     this part is finished, and what it has cost
    .corrupt-ENTRY-TIME/        on its way out, to be made again
    .pruning-ID/                entries that prune has moved, and nothing is decided yet
    .returning-ID/              on their way back, since a sweep has begun meanwhile
    .pruned-ID/                 on their way out
sweeps/SWEEP/
    cells.json                  its cells and the entries that they need, written before the first one starts
    cells-TIME-ID.json          the same of another run of it
    shells/SHELL                a process of this machine that runs it, which holds a lock on the file
    shells/.cancel-SHELL        it is asked to end
    table.md                    what the sweep ends with
    samples.png                 the first images of every cell
    manifest.json               of a submitted sweep: its cells and jobs, written before the first one starts
    manifest-TIME-ID.json       the same of another run of it
    cells/KEY.json              the frozen config of each cell
    code/DIGEST/...             the code that its jobs run
jobs/
    .lock                       held while a shell submits
    .submitting-ID.json         what it is submitting
    NODE.json                   the job that makes a node, whichever sweep submitted it
    NODE.error.json             why it failed
    logs/JOB/...                what it printed
reports/SWEEP/...               tables, figures and the page
exports/CELL.onnx               the network of a cell for other runtimes
wandb/...                       W&B runs, a folder each
.wandb-parts/RUN.lock           held while a run is written
.wandb-parts/RUN-ID/...         a run in the making, which outlives a killed process
.wandb-data/RUN-ID/...          the tables of a run, which W&B keeps elsewhere
.wandb-cache/...                W&B's own
"""

import re
import time
from pathlib import Path
from uuid import uuid4

MANIFEST = "manifest.json"
"""The file of an entry that tells of the others; of a submitted sweep likewise."""
_STORE, _CELLS = "store", "cells.json"
_BEGUN, _COSTS = ".begun-", ".costs-"
_SUBMITTING = ".submitting-"
_MOVED, _RETURNING, _PRUNED = ".pruning-", ".returning-", ".pruned-"


class Layout:
    """The paths in the output folder ``out``; none need exist."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.executions = out / "executions.jsonl"
        self.records = out / "records"
        self.store = out / _STORE
        self.locks = self.store / ".locks"
        self.sweeps = out / "sweeps"
        self.jobs = out / "jobs"
        self.jobs_lock = self.jobs / ".lock"
        self.logs = self.jobs / "logs"
        self.reports = out / "reports"
        self.wandb = out / "wandb"
        self.wandb_cache = out / ".wandb-cache"
        self._wandb_parts, self._wandb_data = out / ".wandb-parts", out / ".wandb-data"

    def record(self, cell: str) -> Path:
        return self.records / f"{cell}.json"

    def export(self, name: str) -> Path:
        return self.out / "exports" / f"{name}.onnx"

    def entry(self, name: str) -> Path:
        return self.store / name

    def work(self, name: str) -> Path:
        return self.store / f".work-{name}"

    def begun(self, name: str, part: str) -> Path:
        return self.work(name) / f"{_BEGUN}{part}"

    def all_begun(self, name: str) -> list[Path]:
        return list(self.work(name).glob(f"{_BEGUN}*"))

    def costs(self, name: str, part: str) -> Path:
        return self.work(name) / f"{_COSTS}{part}"

    def all_costs(self, name: str) -> list[Path]:
        return list(self.work(name).glob(f"{_COSTS}*"))

    def corrupt(self, name: str, time: int) -> Path:
        return self.store / f".corrupt-{name}-{time}"

    def moved(self, prune: str) -> Path:
        return self.store / f"{_MOVED}{prune}"

    def returning(self, moved: Path) -> Path:
        return self.store / moved.name.replace(_MOVED, _RETURNING, 1)

    def pruned(self, moved: Path) -> Path:
        return self.store / moved.name.replace(_MOVED, _PRUNED, 1)

    def all_moved(self) -> list[Path]:
        return list(self.store.glob(f"{_MOVED}*"))

    def all_returning(self) -> list[Path]:
        return list(self.store.glob(f"{_RETURNING}*"))

    def all_pruned(self) -> list[Path]:
        return list(self.store.glob(f"{_PRUNED}*"))

    def sweep(self, name: str) -> "Sweep":
        return Sweep(self.sweeps / name)

    def all_cells(self) -> list[Path]:
        """The lists of all runs of all sweeps, the newest last."""
        return self._of_sweeps(_CELLS)

    def all_manifests(self) -> list[Path]:
        """The manifests of all submitted sweeps."""
        return self._of_sweeps(MANIFEST)

    def _of_sweeps(self, name: str) -> list[Path]:
        folders = self.sweeps.glob("*/")
        found = [path for folder in folders for path in files_of(folder / name)]
        return sorted(found, key=lambda path: path.stat().st_mtime_ns)

    def wandb_lock(self, run: str) -> Path:
        return self._wandb_parts / f"{run}.lock"

    def wandb_part(self, run: str, mirror: str) -> Path:
        return self._wandb_parts / f"{run}-{mirror}"

    def wandb_data(self, run: str, mirror: str) -> Path:
        return self._wandb_data / f"{run}-{mirror}"

    def wandb_runs(self, run: str) -> list[Path]:
        """The folders of a run, which W&B calls by the time too."""
        return _called(self.wandb, rf"(offline-)?run-\d{{8}}_\d{{6}}-{re.escape(run)}")

    def wandb_leftovers(self, run: str) -> list[Path]:
        """The files that all mirrors of a run have left beside its folder."""
        name = rf"{re.escape(run)}-[0-9a-f]{{12}}"
        return _called(self._wandb_parts, name) + _called(self._wandb_data, name)

    def submitting(self, submission: str) -> Path:
        return self.jobs / f"{_SUBMITTING}{submission}.json"

    def all_submitting(self) -> list[Path]:
        return sorted(self.jobs.glob(f"{_SUBMITTING}*.json"))

    def job(self, node: str) -> Path:
        return self.jobs / f"{node}.json"

    def error(self, node: str) -> Path:
        return self.jobs / f"{node}.error.json"


class Sweep:
    """The paths in the ``folder`` of a sweep."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.cells = folder / _CELLS
        self.shells = folder / "shells"
        self.table = folder / "table.md"
        self.samples = folder / "samples.png"
        self.manifest = folder / MANIFEST
        self.code = folder / "code"

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def layout(self) -> Layout:
        """The layout of the output folder that the sweep lies in."""
        return Layout(self.folder.resolve().parents[1])

    def shell(self, name: str) -> Path:
        return self.shells / name

    def all_shells(self) -> list[Path]:
        return [path for path in sorted(self.shells.glob("*")) if not is_hidden(path)]

    def shell_cancelled(self, name: str) -> Path:
        return self.shells / f".cancel-{name}"

    def config(self, cell: str) -> Path:
        return self.folder / "cells" / f"{cell}.json"


def _called(folder: Path, pattern: str) -> list[Path]:
    """The entries of ``folder`` whose whole name matches the pattern: one name may be the end of another."""
    return [path for path in sorted(folder.glob("*")) if re.fullmatch(pattern, path.name)]


def another(path: Path) -> Path:
    """A name for one more file of the name ``path``, which no process of any machine has taken."""
    return path.with_name(f"{path.stem}-{time.time_ns():016x}-{uuid4().hex[:12]}{path.suffix}")


def files_of(path: Path) -> list[Path]:
    """All files of the name ``path`` (``files.add_text``), in the order in which they were written."""
    first = [path] if path.exists() else []
    return first + sorted(path.parent.glob(f"{path.stem}-*{path.suffix}"))


def entry_name(stage: str, key: str) -> str:
    """The name of a stage's entry."""
    return f"{stage}-{key}"


def stage_and_key(entry: str) -> tuple[str, str]:
    """The inverse of ``entry_name``; what is in the making, or on its way out, has a key too."""
    stage, _, key = entry.rpartition("-")
    return stage, key


def is_hidden(path: Path) -> bool:
    """Whether it is no result: in the making, or on its way out."""
    return path.name.startswith(".")


def is_entry(folder: Path) -> bool:
    """Whether the folder is a finished entry of some store, by its place alone."""
    return folder.parent.name == _STORE and not is_hidden(folder)


def records_in(folder: Path) -> list[Path]:
    """The records in any folder, by name."""
    return sorted(folder.glob("*.json"))
