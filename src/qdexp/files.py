"""Files that are whole or not there: written under another name, flushed, then renamed."""

import hashlib
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import TYPE_CHECKING
from uuid import uuid4

from qdexp.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

PART = ".part-"
"""How the names of unfinished files begin."""


def sha256(path: Path) -> str:
    """SHA-256 of a file's bytes, 64 hexadecimal digits."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def require_writable(folder: Path, given: str) -> None:
    """Makes ``folder``. Raises UserError where it cannot be written to; ``given`` is how the user named it."""
    probe = folder / f".probe-{uuid4().hex[:12]}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        try:
            probe.write_text("a full disk still takes empty files")
        finally:
            probe.unlink(missing_ok=True)
    except OSError as error:
        raise UserError(f"{given}: {error.strerror}; choose a folder that can be written to") from error


def write(path: Path, writer: Callable[[Path], object]) -> None:
    """``writer(part)`` fills a file beside ``path``, which then takes its place: nobody ever sees a half."""
    part = path.with_name(f"{PART}{path.name}-{uuid4().hex[:12]}")  # a process number may be another one's on another node
    try:
        writer(part)
        with part.open("rb") as file:
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def write_text(path: Path, text: str) -> None:
    """``write`` for text."""
    write(path, lambda part: part.write_text(text))


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """``write`` for a safetensors file, readable by whom the umask says (safetensors' own files are private to their owner)."""
    from safetensors.torch import save  # tracking uses this module without torch

    write(path, lambda part: part.write_bytes(save(dict(tensors), metadata)))
