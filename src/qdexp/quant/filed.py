"""Joined rows that lie in a file, of which only those asked for are read."""

import ctypes
import os
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import torch
from torch import Tensor, UntypedStorage

from qdexp.errors import UserError


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Shape, strides and dtype of `torch.cat(parts)`: a tensor on the meta device. Its rows follow one another in memory."""
    return torch.cat([torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="meta") for part in parts])


def bytes_of(storage: UntypedStorage) -> memoryview:
    """The bytes of a storage in the host's memory, not copied: it must outlive them. (`Tensor.numpy` makes it unresizable.)"""
    return memoryview((ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr()))


@contextmanager
def reported(path: Path) -> Iterator[None]:
    """Turns what the disk has against a file of rows into one line."""
    try:
        yield
    except OSError as error:
        raise UserError(f"recon.cache_gb: a file of the calibration rows in {path.parent} fails ({error.strerror or error}); "
                        f"fix that or raise recon.cache_gb, then run again: finished blocks are kept") from error  # fmt: skip


class Filed:
    """Stands for a tensor [rows, ...] on `device` that is indexed along its rows; `whole`: what it is like.

    Read with plain reads, row by row: the pages of a memory-mapped file would count as the process's memory. The file goes when
    nothing holds this any more.
    """

    def __init__(self, path: Path, whole: Tensor, device: torch.device) -> None:
        self.device = device
        self._whole, self._row = whole, whole[0].numel() * whole.element_size()
        self._path = path
        with reported(path):
            self._file = os.open(path, os.O_RDWR | os.O_CREAT | os.O_EXCL)
        weakref.finalize(self, _remove, path, self._file)

    def append(self, part: Tensor) -> None:
        """The next rows."""
        rows = self._like(len(part)).copy_(part)
        left = bytes_of(rows.untyped_storage())
        with reported(self._path):
            while left:
                left = left[os.write(self._file, left) :]

    def __getitem__(self, rows: Tensor | slice) -> Tensor:
        """These rows: int64 indices, or a slice without steps."""
        if isinstance(rows, slice):
            start, stop, _ = rows.indices(len(self._whole))
            runs = [(start, stop - start)]
        else:
            runs = [(row, 1) for row in rows.tolist()]
        taken = self._like(sum(length for _, length in runs))
        left = bytes_of(taken.untyped_storage())
        with reported(self._path):
            for first, length in runs:
                self._read(left[: length * self._row], first * self._row)
                left = left[length * self._row :]
        return taken.to(self.device)

    def _read(self, place: memoryview, offset: int) -> None:
        while place:
            done = os.preadv(self._file, [place], offset)
            if not done:
                raise OSError("the file is cut short")
            place, offset = place[done:], offset + done

    def _like(self, rows: int) -> Tensor:
        """Rows without values in the host's memory, laid out as in the whole."""
        return torch.empty_strided((rows, *self._whole.shape[1:]), self._whole.stride(), dtype=self._whole.dtype)


def _remove(path: Path, file: int) -> None:
    os.close(file)
    path.unlink(missing_ok=True)
