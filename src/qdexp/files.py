"""Files that are whole or not there: written under another name, flushed, then renamed. And text that others wrote."""

import codecs
import contextlib
import hashlib
import io
import json
import os
import zipfile
from collections.abc import Callable, Collection, Hashable, Mapping
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast
from uuid import uuid4

from qdexp.errors import UserError
from qdexp.layout import another

if TYPE_CHECKING:
    from numpy.typing import NDArray
    from pydantic import TypeAdapter, ValidationError
    from torch import Tensor

_Kind = TypeVar("_Kind")

PART = ".part-"
"""The beginning of the names of unfinished files."""
SEAL = "content_digest"
"""Under which name a sealed file holds the digest of all its other content."""


_MARKS = {
    codecs.BOM_UTF8: "utf-8-sig",
    codecs.BOM_UTF32_LE: "utf-32",  # which begins as that of UTF-16 does
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
"""Byte order marks, and the codecs that take them away."""


def read_text(path: Path) -> str:
    """The text of a file that a user or another program wrote: UTF-8, or what its byte order mark says; without the mark.

    Raises ValueError where it is no such text.
    """
    raw = path.read_bytes()
    text = raw.decode(next((codec for mark, codec in _MARKS.items() if raw.startswith(mark)), "utf-8"))
    if "\0" in text:  # UTF-16 without a mark is also valid UTF-8, of every other character
        raise ValueError("neither UTF-8 nor text with a byte order mark")
    return text


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


def add_text(path: Path, text: str) -> None:
    """Writes one of the files of the name ``path``, whole or not at all: ``path`` itself, or ``layout.another`` beside it.

    What several processes tell under one name, at once and on file systems without locks, is so kept without loss: none
    changes a file of another's, and whoever reads unites ``layout.files_of`` the name.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    own = another(path)
    write_text(own, text)
    with contextlib.suppress(OSError):  # it is there already, or the file system knows no links
        os.link(own, path)
        own.unlink()


def read_json(path: Path) -> Any:
    """Read a JSON file. Raises OSError, or ValueError where it is none, or nested deeper than can be read."""
    try:
        return json.loads(path.read_text())
    except RecursionError as error:
        raise ValueError("nested too deep") from error


def read_as(path: Path, kind: type[_Kind]) -> _Kind:
    """Read a JSON file that somebody else may have written, as a ``kind`` made of dataclasses, containers and plain values.

    Raises OSError, or ValueError with one line where it is truncated, or anything else.
    """
    from pydantic import ValidationError  # the command line begins without

    try:
        return cast(_Kind, _adapter(cast(Hashable, kind)).validate_json(path.read_bytes(), strict=True))
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from error


def first_mistake(error: "ValidationError") -> str:
    """One line: where it is, and what."""
    first = error.errors(include_url=False, include_context=False, include_input=False)[0]
    return ": ".join(filter(None, [".".join(map(str, first["loc"])), " ".join(first["msg"].split())]))


@cache
def _adapter(kind: Any) -> "TypeAdapter[Any]":
    from pydantic import TypeAdapter

    return TypeAdapter(kind)


def read_arrays(path: Path, names: Collection[str], largest: int = 2**26) -> dict[str, "NDArray[Any]"]:
    """Read those of the arrays ``names`` that an ``.npz`` file holds.

    Raises ValueError where it cannot be read, or one of them takes more than ``largest`` bytes: a small file unpacks to a
    thousand times its size. Nothing in it is unpickled.
    """
    import numpy as np  # the command line begins without

    found = {}
    try:
        with zipfile.ZipFile(path) as archive:
            for name in sorted(set(names) & {member.removesuffix(".npy") for member in archive.namelist()}):
                with archive.open(f"{name}.npy") as member:
                    content = member.read(largest + 1)
                if len(content) > largest:
                    raise ValueError(f"{name} takes more than {largest:,} bytes")
                found[name] = np.lib.format.read_array(io.BytesIO(content), allow_pickle=False)
    except Exception as error:  # zipfile, zlib and numpy have many
        raise ValueError(str(error)) from error
    return found


def write_sealed(path: Path, content: Mapping[str, Any]) -> None:
    """``write`` for a JSON object that can tell whether it is still what was written."""
    write_text(path, json.dumps({**content, SEAL: _seal(content)}, indent=1))


def read_sealed(path: Path) -> dict[str, Any]:
    """Read a file of ``write_sealed``; a file without a seal lacks ``SEAL``. Raises as ``read_json`` does, and ValueError where
    it is no object, or not what was written."""
    content = read_json(path)
    if not isinstance(content, dict):
        raise ValueError("no JSON object")
    try:
        if SEAL in content and content[SEAL] != _seal(content):
            raise ValueError("changed after it was written")
    except RecursionError as error:
        raise ValueError("nested too deep") from error
    return content


def _seal(content: Mapping[str, Any]) -> str:
    """SHA-256 of the content, whatever its layout and the order of its keys."""
    plain = json.loads(json.dumps(content))  # its keys are strings now, by which they are sorted
    plain.pop(SEAL, None)
    return hashlib.sha256(json.dumps(plain, sort_keys=True).encode()).hexdigest()


def are_tensors(path: Path) -> bool:
    """Whether a safetensors file is there, and no byte of it is missing; what the bytes are is not looked at."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(path, framework="pt"):
            return True
    except (OSError, SafetensorError):
        return False


def write_tensors(path: Path, tensors: Mapping[str, "Tensor"], metadata: dict[str, str] | None = None) -> None:
    """``write`` for a safetensors file, readable by whom the umask says (safetensors' own files are private to their owner)."""
    from safetensors.torch import save  # tracking uses this module without torch

    write(path, lambda part: part.write_bytes(save(dict(tensors), metadata)))
