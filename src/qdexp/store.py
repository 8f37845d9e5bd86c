"""The store: one directory a stage result, named by its key and shared by every sweep.

An entry appears whole or not at all: it is made in a work directory beside the store and moved into place by one rename, with
a manifest of its files' digests inside. A torn or changed entry is found when it is opened, put aside and made again.
The work directory outlives a killed process, so that a stage made of shards goes on where it stopped.
"""

import contextlib
import json
import os
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from qdexp import files
from qdexp.errors import UserError

MANIFEST = "manifest.json"


@dataclass(frozen=True)
class Entry:
    """One finished stage result: its folder, and what its making cost."""

    folder: Path
    costs: dict[str, float]


class Store:
    """Entries under ``out/store``; every making of one is a line in ``out/executions.jsonl``."""

    def __init__(self, out: Path) -> None:
        self.out, self.root = out, out / "store"
        self._opened: dict[str, Entry] = {}

    def folder(self, name: str) -> Path:
        return self.root / name

    def open(self, name: str) -> Entry | None:
        """The entry ``name``, or None where it is missing or damaged. Its files are checked once a process."""
        if name not in self._opened:
            entry = self._read(self.folder(name))
            if entry is None:
                return None
            self._opened[name] = entry
        return self._opened[name]

    def make(self, name: str, compute: Callable[[Path], dict[str, float]], note: dict[str, Any]) -> Entry:
        """Opens the entry ``name``, or makes it: ``compute(folder)`` fills a folder and returns the costs.

        ``note`` says what the entry is (stage, options); it is kept in the manifest for a human reader.
        """
        self.root.mkdir(parents=True, exist_ok=True)
        with self._alone(name):
            entry = self.open(name)
            return entry if entry is not None else self._make(name, compute, note)

    def _make(self, name: str, compute: Callable[[Path], dict[str, float]], note: dict[str, Any]) -> Entry:
        final, work = self.folder(name), self.root / f".work-{name}"
        if final.exists():
            self._put_aside(final)
        resumed = work.exists()
        work.mkdir(exist_ok=True)
        costs = compute(work)
        if resumed:  # what the killed process spent is not known
            costs["resumed"] = 1.0
        (work / MANIFEST).unlink(missing_ok=True)  # of a process that was killed before the rename
        for leftover in work.rglob(f"{files.PART}*"):  # of a process that was killed while it wrote
            leftover.unlink()
        digests = {str(p.relative_to(work)): files.sha256(p) for p in sorted(work.rglob("*")) if p.is_file()}
        files.write_text(work / MANIFEST, json.dumps({"costs": costs, "note": note, "files": digests}, indent=1))
        try:
            work.rename(final)
        except OSError:
            if self._read(final) is None:
                raise
            shutil.rmtree(work)  # a file system without locks: somebody else finished the same entry first
        self._log(name, costs)
        self._opened[name] = Entry(final, costs)
        return self._opened[name]

    def _read(self, folder: Path) -> Entry | None:
        try:
            manifest = json.loads((folder / MANIFEST).read_text())
            whole = all(files.sha256(folder / file) == value for file, value in manifest["files"].items())
            return Entry(folder, manifest["costs"]) if whole else None
        except (OSError, ValueError, KeyError, TypeError, AttributeError):
            return None

    def _put_aside(self, folder: Path) -> None:
        print(f"{folder} is damaged: it is made again", flush=True)
        aside = folder.with_name(f".damaged-{folder.name}-{time.time_ns()}")
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _log(self, name: str, costs: dict[str, float]) -> None:
        line = json.dumps({"entry": name, "time": time.strftime("%Y-%m-%dT%H:%M:%S"), "pid": os.getpid(), **costs})
        with open(self.out / "executions.jsonl", "a") as file:
            file.write(line + "\n")

    @contextlib.contextmanager
    def _alone(self, name: str) -> Iterator[None]:
        """Keeps two processes from making the same entry at once. It only saves work: correctness rests on the rename."""
        locks = self.root / ".locks"
        locks.mkdir(exist_ok=True)
        lock = FileLock(locks / name)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            print(f"waiting: another process makes {name}", flush=True)
            lock.acquire()
        try:
            yield
        finally:
            lock.release()


def require_writable(out: Path) -> None:
    """Raises UserError where ``out`` cannot be written to."""
    try:
        out.mkdir(parents=True, exist_ok=True)
        probe = out / f".probe-{os.getpid()}"
        probe.touch()
        probe.unlink()
    except OSError as error:
        raise UserError(f"out={out}: {error.strerror}; choose a folder that can be written to") from error
