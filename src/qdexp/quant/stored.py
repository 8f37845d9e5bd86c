"""Joined rows of a block, wherever they lie: tensors [rows, ...] that are indexed along their rows."""

import weakref
from abc import ABC, abstractmethod
from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from qdexp.quant.scratch import Scratch, bytes_of

Rows = Tensor | slice
"""The chosen rows: int64 indices in the host's memory, or a slice without steps."""


def joined(parts: Sequence[Tensor]) -> Tensor:
    """Shape, strides and dtype of `torch.cat(parts)`: a tensor on the meta device. Its rows follow one another in memory."""
    return torch.cat([torch.empty_strided(part.shape, part.stride(), dtype=part.dtype, device="meta") for part in parts])


def empty(like: Tensor, device: torch.device, rows: int | None = None, pinned: bool = False) -> Tensor:
    """Rows without values, laid out as those of `like`."""
    shape = like.shape if rows is None else (rows, *like.shape[1:])
    return torch.empty_strided(shape, like.stride(), dtype=like.dtype, device=device, pin_memory=pinned)


class Stored(ABC):
    """Stands for a tensor on `device`; `whole`: what it is like, on the meta device."""

    elsewhere = True
    """Whether its rows have to be brought to the device."""

    def __init__(self, whole: Tensor, device: torch.device) -> None:
        self.whole, self.device = whole, device

    def __len__(self) -> int:
        return len(self.whole)

    @abstractmethod
    def fill(self, parts: Iterator[Tensor]) -> None:
        """All rows, part by part."""

    @abstractmethod
    def __getitem__(self, rows: Rows) -> Tensor:
        """Return these rows, on the device. It does not wait for the device: what is copied to it comes from pinned memory."""


class OnDevice(Stored):
    """A tensor in the device's memory."""

    elsewhere = False

    def __init__(self, whole: Tensor, device: torch.device) -> None:
        super().__init__(whole, device)
        self.values = empty(whole, device)

    def fill(self, parts: Iterator[Tensor]) -> None:
        start = 0
        for part in parts:
            self.values[start : start + len(part)].copy_(part)
            start += len(part)

    def __getitem__(self, rows: Rows) -> Tensor:
        return self.values[rows if isinstance(rows, slice) else rows.to(self.device, non_blocking=True)]


class InHost(OnDevice):
    """A tensor in the host's memory, from which a batch is gathered in pinned memory: pinned as a whole, rows would take up to
    twice the room, since pinned memory is allocated in powers of two."""

    elsewhere = True

    def __init__(self, whole: Tensor, device: torch.device) -> None:
        super().__init__(whole, torch.device("cpu"))
        self.device = device

    def __getitem__(self, rows: Rows) -> Tensor:
        index = torch.arange(len(self))[rows] if isinstance(rows, slice) else rows
        taken = empty(self.whole, torch.device("cpu"), len(index), pinned=self.device.type == "cuda")
        torch.index_select(self.values, 0, index, out=taken)
        return taken.to(self.device, non_blocking=True)


class InScratch(Stored):
    """A tensor in scratch space, from which a batch is read row by row."""

    def __init__(self, whole: Tensor, device: torch.device, scratch: Scratch) -> None:
        super().__init__(whole, device)
        self._scratch, self._row = scratch, whole[0].numel() * whole.element_size()
        size = len(whole) * self._row
        self._start = scratch.take(size)
        weakref.finalize(self, scratch.give, self._start, size)

    def fill(self, parts: Iterator[Tensor]) -> None:
        start = self._start
        for part in parts:
            rows = empty(self.whole, torch.device("cpu"), len(part)).copy_(part)
            self._scratch.write(start, bytes_of(rows.untyped_storage()))
            start += len(part) * self._row

    def __getitem__(self, rows: Rows) -> Tensor:
        if isinstance(rows, slice):
            first, stop, _ = rows.indices(len(self))
            runs = [(first, stop - first)]
        else:
            runs = [(row, 1) for row in rows.tolist()]  # in the host's memory
        taken = empty(self.whole, torch.device("cpu"), sum(length for _, length in runs), pinned=self.device.type == "cuda")
        left = bytes_of(taken.untyped_storage())
        for first, length in runs:
            self._scratch.read(self._start + first * self._row, left[: length * self._row])
            left = left[length * self._row :]
        return taken.to(self.device, non_blocking=True)
