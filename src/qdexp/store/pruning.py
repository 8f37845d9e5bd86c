"""Removing what nothing needs, beside sweeps that begin at any moment, without locks.

Who prunes makes a folder, then reads what records and sweeps need, then moves what they do not into that folder, and at last
renames the folder: only now is its content given up. Who begins a sweep first lists what it needs, then takes away every such
folder that has its first name, and puts its content back, and only then looks into the store. So either the list was there
when it was read; or the folder was there to be taken away, and the one who prunes finds out; or all was given up before the
sweep looked. One rename decides, and a process that is killed in between leaves what the next one puts back.
"""

import contextlib
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from uuid import uuid4

from qdexp import files, listing, locks
from qdexp.errors import UserError
from qdexp.layout import Layout, records_in, stage_and_key

DAY = 86400.0  # seconds
TRIES = 10
"""The number of times that a prune begins again because a sweep has begun."""


def put_back(layout: Layout) -> None:
    """Puts back what is being pruned and not given up yet: a sweep that has listed its needs calls it before looking."""
    for folder in layout.all_moved():
        with contextlib.suppress(FileNotFoundError):  # given up, or put back by another process
            folder.rename(layout.returning(folder))
    for folder in layout.all_returning():
        with contextlib.suppress(FileNotFoundError):
            for entry in list(folder.iterdir()):
                with contextlib.suppress(OSError):  # another process was first, or it has been made again
                    entry.rename(layout.store / entry.name)
        shutil.rmtree(folder, ignore_errors=True)


def removable(layout: Layout) -> list[Path]:
    """Entries, and what is in the making, that neither a record nor a sweep needs."""
    needed = _needed(layout)
    return [folder for folder in folders(layout) if stage_and_key(folder.name)[1] not in needed]


def strays(layout: Layout) -> list[Path]:
    """Files and folders outside the store that killed processes have left unfinished: nothing has touched them for a day."""
    found = [path for folder in (layout.records, layout.jobs, layout.sweeps, layout.reports) for path in _parts(folder)]
    return [path for path in found if path.exists() and not locks.lives(path, within=DAY)]


def _parts(folder: Path) -> Iterator[Path]:
    return folder.rglob(f"{files.PART}*") if folder.is_dir() else iter(())


def folders(layout: Layout) -> Iterator[Path]:
    """Entries, and what is in the making."""
    aside = {layout.locks, *layout.all_moved(), *layout.all_returning(), *layout.all_pruned()}
    return (path for path in sorted(layout.store.iterdir()) if path.is_dir() and path not in aside)


def remove(layout: Layout) -> dict[str, int]:
    """Removes what is removable, and strays; returns the bytes of each. Raises UserError where sweeps begin all the time."""
    put_back(layout)  # of a prune that was killed
    for _ in range(TRIES):
        given_up = _move(layout)
        if given_up is not None:
            removed = {folder.name: size(folder) for folder in sorted(given_up.iterdir())}
            removed |= {path.name: size(path) for path in strays(layout)}
            for path in (*layout.all_pruned(), *strays(layout)):  # those of processes that were killed too
                shutil.rmtree(path, ignore_errors=True) if path.is_dir() else path.unlink(missing_ok=True)
            return removed
    raise UserError(f"prune: a sweep has begun in {layout.out} each of the {TRIES} times that it was tried; run it again later")


def _move(layout: Layout) -> Path | None:
    """Gives up what is removable; None where a sweep has begun meanwhile, and nothing is given up."""
    moved = layout.moved(uuid4().hex[:12])
    moved.mkdir()
    try:
        for folder in removable(layout):
            with contextlib.suppress(FileNotFoundError):  # what was in the making is an entry now; or all is put back
                folder.rename(moved / folder.name)
    except BaseException:
        put_back(layout)
        raise
    try:
        return moved.rename(layout.pruned(moved))
    except FileNotFoundError:
        return None


def _needed(layout: Layout) -> set[str]:
    """The keys that records name, those of failed cells too, and what sweeps list: their cells may be yet to come."""
    keys = {key for record in records(layout).values() for key in record.keys.values()}
    listed = [entry for path in layout.all_cells() for line in listing.of_run(path).values() for entry in line.entries]
    return keys | {stage_and_key(entry)[1] for entry in listed}


@dataclass(frozen=True)
class _Config:
    sweep: str


@dataclass(frozen=True)
class Kept:
    """A record's needs, and the sweep that it was made for."""

    cell: str
    config: _Config
    keys: dict[str, str]


def records(layout: Layout) -> dict[Path, Kept]:
    """Read the needs of all records, failed ones too. Raises UserError where one is truncated, or something else."""
    found = {}
    for path in records_in(layout.records):
        try:
            found[path] = files.read_as(path, Kept)
        except FileNotFoundError:
            continue  # renamed meanwhile, and listed before it was
        except (OSError, ValueError) as error:
            raise UserError(f"{path} is truncated, or no record ({error}): delete it and run the sweep again") from error
    return found


def size(place: Path) -> int:
    """Bytes of a file, or of those in a folder, as far as they are there long enough to be looked at."""
    found = 0
    with contextlib.suppress(FileNotFoundError):  # a sweep is at work in it
        for path in (place, *place.rglob("*")):
            found += path.stat().st_size if path.is_file() else 0
    return found
