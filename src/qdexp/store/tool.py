"""Work on a store: measure, check, clean, take along."""

import shutil
import sys
import tarfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path

from rich.filesize import decimal

from qdexp import entries, files, listing
from qdexp.errors import UserError
from qdexp.layout import MANIFEST, Sweep, is_hidden, stage_and_key
from qdexp.store import Store, pruning

HEAVY = ("conditions", "trajectory", "calibration", "rounding")
"""Stages that only other stages read: left behind by a copy."""


def du(store: Store) -> None:
    """Prints entries and size of each kind of stage, of what is in the making, and of what nothing needs."""
    sizes: dict[str, list[int]] = defaultdict(list)
    removable, unneeded = set(pruning.removable(store.layout)), 0
    for folder in pruning.folders(store.layout):
        size = pruning.size(folder)
        sizes["in the making" if is_hidden(folder) else stage_and_key(folder.name)[0]].append(size)
        unneeded += size if folder in removable else 0
    for kind, found in sorted(sizes.items(), key=lambda item: -sum(item[1])):
        print(f"{kind:<14} {len(found):>6}  {decimal(sum(found)):>9}")
    print(f"{'all':<14} {sum(map(len, sizes.values())):>6}  {decimal(sum(map(sum, sizes.values()))):>9}")
    print(f"nothing needs {decimal(unneeded)} of it (prune)")


def verify(store: Store) -> int:
    """Says what is wrong with each corrupt entry; returns how many there are, at most 1."""
    found, corrupt = [folder for folder in pruning.folders(store.layout) if not is_hidden(folder)], 0
    for folder in found:
        try:
            entries.whole(folder)
        except entries.CorruptError as error:
            print(error)
            corrupt += 1
    print(f"{len(found) - corrupt} entries are whole, {corrupt} corrupt")
    return min(1, corrupt)


def prune(store: Store, yes: bool) -> None:
    """Removes what no record and no sweep needs, or says what that is."""
    layout = store.layout
    found = [] if yes else [*pruning.removable(layout), *pruning.strays(layout)]
    sizes = pruning.remove(layout) if yes else {path.name: pruning.size(path) for path in found}
    for name in sizes:
        print(f"{'removed' if yes else 'not needed'}: {name}")
    cells = {path.parent.name: listing.read(Sweep(path.parent)) for path in layout.all_cells()}
    waiting = [name for name, listed in cells.items() if not all(layout.record(cell).exists() for cell in listed)]
    if waiting:
        print(f"kept for cells without a record: sweeps {', '.join(waiting)}; delete the folders of those that you gave up "
              f"({layout.sweeps})")  # fmt: skip
    print(f"{decimal(sum(sizes.values()))} {'freed' if yes else 'would be freed: add --yes'}")


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
    cells = listing.read(store.layout.sweep(sweep))
    records = pruning.records(store.layout).items()
    found = {path: record for path, record in records if record.config.sweep == sweep or record.cell in cells}
    if not found:
        raise UserError(f"copy {sweep}: {store.out} has no record of such a sweep")
    keys = {key for record in found.values() for key in record.keys.values()}
    for folder in pruning.folders(store.layout):
        kind, key = stage_and_key(folder.name)
        if key in keys and not is_hidden(folder) and (everything or kind not in HEAVY):
            yield from (folder / name for name in sorted(entries.whole(folder)["files"]))
            yield folder / MANIFEST  # last: what has one is whole
    yield from sorted(path for path in store.layout.sweep(sweep).folder.rglob("*") if path.is_file())
    yield from found
