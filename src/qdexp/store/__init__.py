"""The store: one directory a stage result, named by its key and shared by every sweep.

An entry appears whole or not at all: it is made in a work directory beside the store and moved into place by one rename, with
a manifest of its files' digests inside. A corrupt entry is found when it is opened, put aside and made again.
The work directory outlives a killed process, so that a stage made of shards goes on where it stopped.
"""

import json
import os
import shutil
import time
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any
from uuid import uuid4

from qdexp import entries, files, locks
from qdexp.layout import MANIFEST, Layout, entry_name, stage_and_key

Compute = Callable[[Path], dict[str, float]]
"""Fills a folder, keeping what is there already, and returns what that has cost."""


@dataclass(frozen=True)
class Entry:
    """One finished stage result: its folder, what its making cost, what it is, and the kinds of ``machines`` that made it."""

    folder: Path
    costs: dict[str, float]
    note: dict[str, Any]
    machines: Sequence[str] = ()


class Store:
    """The entries of an output folder; every making of one is a line in its list of executions."""

    def __init__(self, out: Path) -> None:
        self.out, self.layout = out, Layout(out)

    def folder(self, name: str) -> Path:
        return self.layout.entry(name)

    def open(self, name: str) -> Entry | None:
        """The entry ``name``, or None where it is missing or corrupt. A file is hashed once a process."""
        folder = self.folder(name)
        try:
            manifest = entries.whole(folder)
            return Entry(folder, manifest["costs"], manifest["note"], manifest.get("machines", ()))
        except (entries.CorruptError, KeyError):
            return None

    def make(self, name: str, compute: Compute, note: dict[str, Any], machine: str = "") -> Entry:
        """Opens the entry ``name``, or makes it: ``compute(folder)`` fills a folder and returns the costs.

        ``note`` says what the entry is (stage, options); it is kept in the manifest for a human reader, as is the kind of the
        ``machine`` that computes.
        """
        with self.alone(name):
            entry = self.open(name)
            return entry if entry is not None else self._make(name, compute, note, machine)

    def has(self, name: str) -> bool:
        """Whether the entry is there, by its manifest alone: enough to plan by, not to read from."""
        return (self.folder(name) / MANIFEST).exists()

    def work(self, name: str) -> Path:
        """The folder of the entry in the making."""
        return self.layout.work(name)

    def add(self, name: str, part: str, compute: Compute, machine: str = "") -> None:
        """A ``part`` of the entry ``name``: ``compute(folder)`` fills its share of the folder in which the entry is made.

        Any number of processes may add parts at once; ``make`` completes the entry and adds up what the parts have cost.
        """
        work = self.work(name)
        work.mkdir(parents=True, exist_ok=True)
        begun = self.layout.begun(name, part)
        resumed = {"resumed": 1.0} if begun.exists() else {}  # what the killed process spent is not known
        with begun.open("a") as kinds:  # of all that worked on it, those that were killed too
            kinds.write(f"{machine}\n")
        files.write_text(self.layout.costs(name, part), json.dumps(compute(work) | resumed))

    def added(self, name: str) -> int:
        """The number of finished parts of the entry in the making."""
        return len(self.layout.all_costs(name))

    def _make(self, name: str, compute: Compute, note: dict[str, Any], machine: str) -> Entry:
        final, work = self.folder(name), self.work(name)
        if final.exists():
            self._put_aside(final)
        try:
            self.add(name, "whole", compute, machine)
            costs, machines = self._costs(name), self._machines(name)
            _write_manifest(work, Entry(work, costs, note, machines))
            work.rename(final)
        except Exception:
            entry = self.open(name)  # a file system without locks: somebody else finished the same entry first
            if entry is None:
                raise
            shutil.rmtree(work, ignore_errors=True)
            return entry
        for leftover in final.rglob(".*"):  # costs, and what killed processes were writing
            leftover.unlink(missing_ok=True)
        self._log(name, costs)
        return Entry(final, costs, note, machines)

    def _machines(self, name: str) -> list[str]:
        """The kinds of machines that have worked on it."""
        begun = (path.read_text(errors="replace") for path in self.layout.all_begun(name))
        return sorted({kind for text in begun for kind in text.splitlines() if kind})

    def _costs(self, name: str) -> dict[str, float]:
        """The costs of all parts: seconds add up, memory peaks do not; ``resumed`` where a killed process worked on one."""
        parts = [costs for path in self.layout.all_costs(name) if (costs := _costs(path)) is not None]
        whole = {"seconds": round(sum(part["seconds"] for part in parts), 3)}
        whole["peak_memory_mb"] = max(part["peak_memory_mb"] for part in parts)
        lost = len(self.layout.all_begun(name)) > len(parts) or any("resumed" in part for part in parts)
        return whole | ({"resumed": 1.0} if lost else {})

    def adopt(self, name: str, entry: Entry, note: dict[str, Any]) -> None:
        """Gives a finished entry the ``name`` too, with a ``note`` of its own; its files are linked where they can be."""
        if self.has(name):
            return
        work = self.work(entry_name(f"adopt-{uuid4().hex[:12]}", stage_and_key(name)[1]))  # prune leaves what a sweep needs
        try:
            for result in entries.names(entry.folder):
                target = work / result
                target.parent.mkdir(parents=True, exist_ok=True)
                try:
                    os.link(entry.folder / result, target)
                except OSError:  # a file system without links, or with too many
                    shutil.copyfile(entry.folder / result, target)
            _write_manifest(work, replace(entry, note=note))
            work.rename(self.folder(name))
        finally:
            shutil.rmtree(work, ignore_errors=True)

    def _put_aside(self, folder: Path) -> None:
        print(f"{folder} is corrupt: it is made again", flush=True)
        aside = self.layout.corrupt(folder.name, time.time_ns())
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)

    def _log(self, name: str, costs: dict[str, float]) -> None:
        line = json.dumps({"entry": name, "time": time.strftime("%Y-%m-%dT%H:%M:%S"), "pid": os.getpid(), **costs})
        with open(self.layout.executions, "a") as file:
            file.write(line + "\n")

    def alone(self, name: str) -> AbstractContextManager[None]:
        """Keeps two processes from making the same entry at once. It only saves work: correctness rests on the rename."""
        return locks.alone(self.layout.locks / name, f"another process makes {name}")


def _costs(path: Path) -> dict[str, float] | None:
    """The costs of a part; None where their file is truncated, so that they are not known."""
    try:
        found = files.read_as(path, dict[str, float])
    except (OSError, ValueError):
        return None
    return found if {"seconds", "peak_memory_mb"} <= found.keys() else None


def _write_manifest(folder: Path, entry: Entry) -> None:
    digests = {result: files.sha256(folder / result) for result in sorted(entries.names(folder))}
    about = {"costs": entry.costs, "note": entry.note, "machines": entry.machines}
    files.write_sealed(folder / MANIFEST, {**about, "files": digests})
