"""The manifest of a submitted sweep, so that its jobs, and any shell later, know it without composing anything again."""

import json
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from qdexp import files, shape
from qdexp.errors import UserError, did_you_mean
from qdexp.layout import Layout, files_of, stage_and_key
from qdexp.sweep.jobs import Node

FORMAT = 1


@dataclass(frozen=True)
class CellEntry:
    """One cell as the manifest lists it: ``name`` of its record, ``label`` for a person, store ``entries`` by stage."""

    key: str
    name: str
    label: str
    entries: dict[str, str]

    @property
    def keys(self) -> dict[str, str]:
        """The keys of its stages."""
        return {role: stage_and_key(entry)[1] for role, entry in self.entries.items()}


@dataclass(frozen=True)
class Manifest:
    """A sweep that runs in jobs: all that these and later shells need to know."""

    sweep: str
    out: Path
    cwd: Path
    device: str
    cells: dict[str, CellEntry]
    nodes: list[Node]
    time: float
    command: str

    def write(self) -> None:
        """Adds this one to what was submitted under the same name before, where it has a job or a cell beside."""
        path = Layout(self.out).sweep(self.sweep).manifest
        if self.nodes or not files_of(path) or not self.cells.items() <= read(self.out, self.sweep).cells.items():
            files.add_text(path, json.dumps({"format": FORMAT, **asdict(self)}, indent=1, default=str))


@dataclass(frozen=True)
class _Format:
    format: int | None = None


def read(out: Path, sweep: str) -> Manifest:
    """All that was submitted of a sweep, the last time and before.

    Raises UserError where there is no such sweep, or a manifest is truncated, something else or of another format.
    """
    paths = files_of(Layout(out).sweep(sweep).manifest)
    if not paths:
        known = names(out)
        raise UserError(f"{sweep}: no such sweep was submitted from {out}{did_you_mean(sweep, known)} (there are: "
                        f"{', '.join(known) or 'none'})")  # fmt: skip
    runs = [_read_run(path) for path in paths]
    cells = {key: cell for run in runs for key, cell in run.cells.items()}
    nodes = {node.id: node for run in runs for node in run.nodes}
    return replace(runs[-1], sweep=sweep, out=out, cells=cells, nodes=list(nodes.values()))


def _read_run(path: Path) -> Manifest:
    try:
        found = files.read_as(path, _Format).format
        if found == FORMAT:
            manifest = files.read_as(path, Manifest)
            _check(manifest)
            return manifest
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is truncated, or no manifest ({error}): delete it and submit the sweep again") from error
    raise UserError(f"{path}: format {found}, not {FORMAT}; submit the sweep again")


def _check(sweep: Manifest) -> None:
    """Raises ValueError where jobs are of cells that are not there, or something is called as no file can be."""
    called = [name for node in sweep.nodes for name in (node.id, node.entry)]
    called += [name for key, cell in sweep.cells.items() for name in (key, cell.key, cell.name, *cell.entries.values())]
    for name in called:
        if not shape.is_file_name(name):
            raise ValueError(f"{name!r} is no name of a file")
    for node in sweep.nodes:
        if node.cell not in sweep.cells:
            raise ValueError(f"{node.id} is of the cell {node.cell!r}, which is not listed")


def names(out: Path) -> list[str]:
    """The submitted sweeps of an output folder, the newest last."""
    newest_first = (path.parent.name for path in reversed(Layout(out).all_manifests()))
    return list(dict.fromkeys(newest_first))[::-1]


class Registry:
    """The registry of jobs and nodes among all sweeps of an output folder."""

    def __init__(self, out: Path) -> None:
        self.layout = Layout(out)

    def job(self, node: str) -> dict[str, str]:
        """``id``, ``log`` and ``sweep`` of the last job that was submitted for ``node``, or of a process of this machine, which
        has a ``shell`` for an ``id``, and a ``state`` once it has ended; empty where there was none."""
        found = _read(self.layout.job(node))
        return found if found.keys() & {"id", "state"} or {"shell", "sweep"} <= found.keys() else {}

    def submitted(self, node: str, job: str, log: Path, sweep: str) -> None:
        self.succeeded(node)  # an error of an earlier job is past
        _write(self.layout.job(node), {"id": job, "log": str(log), "sweep": sweep})

    def started(self, node: str, shell: str, log: Path, sweep: str) -> None:
        _write(self.layout.job(node), {"shell": shell, "log": str(log), "sweep": sweep})

    def ended(self, node: str, shell: str, state: str) -> None:
        """A process of this machine has ended, or never was, and has not succeeded; that of another shell is left alone."""
        job = self.job(node)
        if not job or job.get("shell") == shell:
            _write(self.layout.job(node), job | {"state": state})

    def forget(self, node: str) -> None:
        """An earlier job and its error are past."""
        self.layout.job(node).unlink(missing_ok=True)
        self.succeeded(node)

    def error(self, node: str) -> dict[str, str]:
        """Why the last job of ``node`` failed, as a record keeps it; empty where it did not."""
        found = _read(self.layout.error(node))
        return found if {"type", "message"} <= found.keys() else {}

    def failed(self, node: str, error: dict[str, str]) -> None:
        _write(self.layout.error(node), error)

    def succeeded(self, node: str) -> None:
        self.layout.error(node).unlink(missing_ok=True)


def _read(path: Path) -> dict[str, str]:
    """Empty where there is none, or something else was written there."""
    try:
        return files.read_as(path, dict[str, str])
    except (OSError, ValueError):
        return {}


def _write(path: Path, value: dict[str, str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    files.write_text(path, json.dumps(value))
