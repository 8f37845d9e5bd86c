"""The last tier of the row cache: a file without a name in a folder of scratch space.

The file is unlinked as soon as it is open, so that the system frees it with the process, however that ends. It is read and
written with plain calls: the pages of a memory-mapped file would count as the process's memory, and a full disk would kill it.
"""

import ctypes
import os
from bisect import insort
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from tempfile import TemporaryFile

from torch import UntypedStorage

from qdexp.errors import UserError


def bytes_of(storage: UntypedStorage) -> memoryview:
    """The bytes of a storage in the host's memory, not copied: it must outlive them. (`Tensor.numpy` makes it unresizable.)"""
    return memoryview((ctypes.c_ubyte * storage.nbytes()).from_address(storage.data_ptr()))


class Scratch:
    """Pieces of one file, which are given back and written over. Nothing is opened before the first piece is asked for."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._file: int | None = None
        self._end = 0
        self._free: list[tuple[int, int]] = []  # (start, size), in order, no two of which touch
        self._given = deque[tuple[int, int]]()  # at any moment: a garbage collection, too, gives back

    def close(self) -> None:
        """Gives all of it back to the disk."""
        if self._file is not None:
            os.close(self._file)
        self._file = None

    def take(self, size: int) -> int:
        """The place where `size` bytes may be written."""
        while self._given:
            self._join(*self._given.popleft())
        for number, (start, room) in enumerate(self._free):
            if room >= size:
                self._free[number : number + 1] = [(start + size, room - size)] if room > size else []
                return start
        start, self._end = self._end, self._end + size
        return start

    def give(self, start: int, size: int) -> None:
        """Give back bytes that are no longer needed."""
        self._given.append((start, size))

    def _join(self, start: int, size: int) -> None:
        insort(self._free, (start, size))
        place = self._free.index((start, size))
        for first in (place, place - 1):  # joined with the next, then with the one before
            if 0 <= first < len(self._free) - 1:
                (begin, room), (following, more) = self._free[first : first + 2]
                if begin + room == following:
                    self._free[first : first + 2] = [(begin, room + more)]

    def write(self, start: int, data: memoryview) -> None:
        """Raises UserError where the disk does not take them."""
        with self._reported():
            file = self._opened()
            while data:
                done = os.pwrite(file, data, start)
                data, start = data[done:], start + done

    def read(self, start: int, into: memoryview) -> None:
        """Read what was written there. Raises UserError where the disk fails."""
        with self._reported():
            file = self._opened()
            while into:
                done = os.preadv(file, [into], start)
                if not done:
                    raise OSError("the file is cut short")
                into, start = into[done:], start + done

    def _opened(self) -> int:
        if self._file is None:
            with TemporaryFile(dir=self.folder, buffering=0) as file:
                self._file = os.dup(file.fileno())
        return self._file

    @contextmanager
    def _reported(self) -> Iterator[None]:
        """Turns what the disk has against it into one line."""
        try:
            yield
        except OSError as error:
            raise UserError(f"memory.scratch={self.folder}: a file of the calibration rows fails ({error.strerror or error}); "
                            f"fix that, name another folder or raise memory.host_gb, then run again: finished blocks are "
                            f"kept") from error  # fmt: skip
