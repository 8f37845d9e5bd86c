"""What a person does with a store: measure, check, clean, take along."""

import contextlib
import json
import shutil
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from rich.filesize import decimal

from qdexp import entries, files
from qdexp.errors import UserError
from qdexp.layout import MANIFEST, Layout, is_hidden, is_pruned, records_in, stage_and_key
from qdexp.store import Store

HEAVY = ("conditions", "trajectory", "calibration", "rounding")
"""Stages that only other stages read: left behind by a copy."""


def du(store: Store) -> None:
    """Prints entries and size of each kind of stage, of what is in the making, and of what nothing needs."""
    sizes: dict[str, list[int]] = defaultdict(list)
    needed, unneeded = _needed(store.layout), 0
    for folder in _folders(store):
        size = _size(folder)
        sizes["in the making" if is_hidden(folder) else stage_and_key(folder.name)[0]].append(size)
        unneeded += size if _removable(folder, needed) else 0
    for kind, found in sorted(sizes.items(), key=lambda item: -sum(item[1])):
        print(f"{kind:<14} {len(found):>6}  {decimal(sum(found)):>9}")
    print(f"{'all':<14} {sum(map(len, sizes.values())):>6}  {decimal(sum(map(sum, sizes.values()))):>9}")
    print(f"nothing needs {decimal(unneeded)} of it (prune)")


def verify(store: Store) -> int:
    """Says what is wrong with each corrupt entry; returns how many there are, at most 1."""
    found, corrupt = [folder for folder in _folders(store) if not is_hidden(folder)], 0
    for folder in found:
        try:
            entries.whole(folder)
        except entries.CorruptError as error:
            print(error)
            corrupt += 1
    print(f"{len(found) - corrupt} entries are whole, {corrupt} corrupt")
    return min(1, corrupt)


def prune(store: Store, yes: bool) -> None:
    """Removes what no record and no sweep needs; an entry first disappears by a rename, so it is whole or absent.

    A sweep lists what it needs before it looks into the store. So what one that began meanwhile counts on is found to be
    needed once it is out of sight, and put back.
    """
    needed = _needed(store.layout)
    doomed = {folder: _size(folder) for folder in _folders(store) if _removable(folder, needed)}
    if yes:
        doomed = {folder: doomed[folder] for folder in _remove(list(doomed), store.layout)}
    for folder in doomed:
        print(f"{'removed' if yes else 'not needed'}: {folder.name}")
    sweeps, record = _sweeps(store.layout), store.layout.record
    waiting = [name for name, cells in sweeps.items() if not all(record(cell).exists() for cell in cells)]
    if waiting:
        print(f"kept for cells without a record: sweeps {', '.join(waiting)}; delete the folders of those that you gave up "
              f"({store.layout.sweeps})")  # fmt: skip
    print(f"{decimal(sum(doomed.values()))} {'freed' if yes else 'would be freed: add --yes'}")


def _remove(doomed: list[Path], layout: Layout) -> list[Path]:
    """Removes folders, but for those that turn out to be needed once they are out of sight; returns which it removed."""
    aside = {folder: folder.rename(layout.pruned(folder.name)) for folder in doomed}
    needed = _needed(layout)
    kept = [folder for folder in doomed if not _removable(folder, needed) and not folder.exists()]
    for folder, moved in aside.items():
        if folder in kept:
            moved.rename(folder)
        else:
            shutil.rmtree(moved)
    return [folder for folder in doomed if folder not in kept]


def copy(store: Store, sweep: str, to: str, everything: bool) -> None:
    """A sweep's results into another output folder, or to standard output as a tar stream (``to`` = -).

    Entries come before the records that name them, so a copy that breaks off holds no record without its results. Raises
    UserError, before anything is copied, where one of them is corrupt.
    """
    paths = list(_of_sweep(store, sweep, everything))
    if to == "-":
        with tarfile.open(fileobj=sys.stdout.buffer, mode="w|") as stream:
            for path in paths:
                stream.add(path, str(path.relative_to(store.out)))
        return
    files.require_writable(Path(to), f"copy {sweep} {to}")
    for path in paths:
        target = Path(to) / path.relative_to(store.out)
        target.parent.mkdir(parents=True, exist_ok=True)
        files.write(target, lambda part, path=path: shutil.copyfile(path, part))  # type: ignore[misc]
    print(f"{len(paths)} files, {decimal(sum(path.stat().st_size for path in paths))} copied to {to}")


def _of_sweep(store: Store, sweep: str, everything: bool) -> Iterator[Path]:
    found = {path: record for path, record in _records(store.layout).items() if record["config"]["sweep"] == sweep}
    cells = _sweeps(store.layout).get(sweep, {})
    found |= {path: record for path, record in _records(store.layout).items() if record["cell"] in cells}
    if not found:
        raise UserError(f"copy {sweep}: {store.out} has no record of such a sweep")
    keys = {key for record in found.values() for key in record["keys"].values()}
    for folder in _folders(store):
        kind, key = stage_and_key(folder.name)
        if key in keys and not is_hidden(folder) and (everything or kind not in HEAVY):
            yield from (folder / name for name in sorted(entries.whole(folder)["files"]))
            yield folder / MANIFEST  # last: what has one is whole
    yield from sorted(path for path in store.layout.sweep(sweep).folder.rglob("*") if path.is_file())
    yield from found


def _folders(store: Store) -> Iterator[Path]:
    """Entries, and what is in the making."""
    return (path for path in sorted(store.layout.store.iterdir()) if path.is_dir() and path != store.layout.locks)


def _needed(layout: Layout) -> set[str]:
    """The keys that records name, those of failed cells too, and what sweeps list: their cells may be yet to come."""
    keys = {key for record in _records(layout).values() for key in record["keys"].values()}
    listed = [entry for cells in _sweeps(layout).values() for entries in cells.values() for entry in entries]
    return keys | {stage_and_key(entry)[1] for entry in listed}


def _removable(folder: Path, needed: set[str]) -> bool:
    return is_pruned(folder) or stage_and_key(folder.name)[1] not in needed


def _records(layout: Layout) -> dict[Path, dict[str, Any]]:
    found = {}
    for path in records_in(layout.records):
        try:
            record = files.read_json(path)
            found[path] = {name: record[name] for name in ("cell", "config", "keys")}
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{path} is truncated, or no record: delete it and run the sweep again") from error
    return found


def _sweeps(layout: Layout) -> dict[str, dict[str, list[str]]]:
    """sweep -> cell -> the entries that it needs."""
    found = {}
    for path in layout.all_cells():
        try:
            found[path.parent.name] = {cell: listed["entries"] for cell, listed in json.loads(path.read_text()).items()}
        except (ValueError, TypeError) as error:
            raise UserError(f"{path} does not say what its cells need: run the sweep again, or delete its folder") from error
    return found


def _size(folder: Path) -> int:
    size = 0
    with contextlib.suppress(FileNotFoundError):  # a sweep is at work in it
        for path in folder.rglob("*"):
            size += path.stat().st_size if path.is_file() else 0
    return size
