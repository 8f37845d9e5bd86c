"""Entries of the store, as they are read: the files that the manifest of an entry names, bit for bit, and no others.

The manifest holds the SHA-256 of every file. Whatever reads an entry, be it a stage, a report or a tracker, comes by here, so
that a flipped bit ends in one line and never in a number. This needs no torch.
"""

import time
from pathlib import Path
from typing import Any

from qdexp import files
from qdexp.errors import UserError
from qdexp.layout import MANIFEST, is_entry, is_hidden

_SETTLED = 2 * 10**9
"""Nanoseconds after which a file that is written again has another time of change, on any file system."""

_digests: dict[tuple[Path, int, int, int], str] = {}


class CorruptError(UserError):
    """An entry is not what was made."""


def digest(path: Path) -> str:
    """SHA-256 of a file, which is hashed once a process, and again where its size, time of change or inode is another."""
    stat = path.stat()
    key = (path, stat.st_size, stat.st_mtime_ns, stat.st_ino)
    if key in _digests:
        return _digests[key]
    value = files.sha256(path)
    if time.time_ns() - stat.st_mtime_ns > _SETTLED:
        _digests[key] = value
    return value


def names(folder: Path) -> set[str]:
    """The files of an entry, from its folder. Hidden ones, which a process that makes it may be writing, are none of them."""
    found = (path for path in folder.rglob("*") if not is_hidden(path) and (path.is_symlink() or not path.is_dir()))
    return {path.relative_to(folder).as_posix() for path in found} - {MANIFEST}


def manifest(folder: Path) -> dict[str, Any]:
    """The manifest of the entry in ``folder``, which holds the files named there and no others; their bytes are not looked at.

    Raises:
        CorruptError: The manifest cannot be read, or the files are others.
    """
    try:
        content = files.read_sealed(folder / MANIFEST)
        differing = content["files"].keys() ^ names(folder)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise _corrupt(folder, f"{MANIFEST}: {error}") from error
    if differing:
        name = min(differing)
        raise _corrupt(folder, f"{name} is missing" if name in content["files"] else f"{MANIFEST} names no {name}")
    return content


def require(folder: Path, name: str) -> Path:
    """The path of the file ``name`` of the entry in ``folder``, whose bytes are those that were written.

    Raises:
        CorruptError: They are not, or ``manifest`` raises.
    """
    return _require(folder, manifest(folder), name)


def whole(folder: Path) -> dict[str, Any]:
    """The manifest, all files compared with it. Raises as ``require`` does."""
    content = manifest(folder)
    for name in content["files"]:
        _require(folder, content, name)
    return content


def check_part(part: Path) -> None:
    """Check the digests of the files in ``part``, if that is a folder within a finished entry of a store; other folders are not
    checked."""
    folder = part.resolve().parent
    if not is_entry(folder):
        return
    content = manifest(folder)
    for name in content["files"]:
        if name.startswith(f"{part.name}/"):
            _require(folder, content, name)


def _require(folder: Path, content: dict[str, Any], name: str) -> Path:
    path = folder / name
    try:
        if digest(path) == content["files"][name]:
            return path
    except (OSError, KeyError) as error:
        raise _corrupt(folder, f"{name} cannot be read") from error
    raise _corrupt(folder, f"{name} is not what {MANIFEST} says")


def _corrupt(folder: Path, why: str) -> CorruptError:
    return CorruptError(f"{folder} is corrupt ({' '.join(why.split())}): run its cell again, which makes it anew; on a cluster "
                        f"delete the cell's record first")  # fmt: skip
