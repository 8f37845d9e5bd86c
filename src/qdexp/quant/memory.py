"""Memory with a limit: what the calibration rows hold while blocks are walked, in memory as far as it fits, else in files.

Two kinds of tensors count. The joined rows of the block at hand are *hot*: they are read in every iteration. What the passes of
the streams have made and still hold at an entrance (pending shortcuts, time embeddings, calls, outputs) is *cold*: it is read
when a pass gets there. So rows are given room first, and what is cold is parked, the oldest first: in a U-Net the oldest
shortcut is the last one to be read. The pass that runs, one batch, comes on top.

A parked tensor keeps its identity, shape, dtype and aliases; only its storage is empty, and its bytes lie in a file. It is
filled again when an operation inside a pass reads it, so that a shortcut is written once and read once, however many blocks it
is pending for. Outside of the passes its metadata may be looked at; its values only under `lent`.
"""

import ctypes
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import Any
from uuid import uuid4

import torch
from torch import Tensor, UntypedStorage, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from qdexp.files import PART
from qdexp.quant.filed import Filed, bytes_of, joined, reported

_NAME = PART + "cache-{}-{}"
_SMALLEST = 4096
"""Bytes of the smallest storage that counts: less is not worth a file, and may be read without an operation (as a list)."""

_MAY_HOLD = (Tensor, dict, list, tuple)


@dataclass
class _Held:
    """A storage that counts. `path`: where its bytes lie while it is empty."""

    storage: StorageWeakRef
    size: int
    hot: bool
    path: Path | None = None


class Memory:
    """See the module's docstring. `limit` in bytes, None: none; `folder`: where the files lie; `networks`: those whose passes
    run. What modules of theirs keep as attributes is never parked: others read it too."""

    def __init__(self, limit: int | None = None, folder: Path = Path(), networks: Sequence[nn.Module] = ()) -> None:
        self._limit, self._folder, self._networks = limit, folder, networks
        self._own = uuid4().hex[:12]  # where a file system has no locks, another process may be at the same entry
        self._held: dict[int, _Held] = {}  # the one used last comes last
        self._numbers = count()

    def __enter__(self) -> "Memory":
        self._clear("*")  # what a killed process left
        return self

    def __exit__(self, error: object, *_: object) -> None:
        if error is None:
            self._fill_all()
        self._held.clear()
        self._clear(self._own)

    def _fill_all(self) -> None:
        """What outlives the passes, such as a table that a function remembers, is for others to read."""
        self._forget()
        for held in list(self._held.values()):
            self.read(_storage(held))

    def _clear(self, whose: str) -> None:
        for path in self._folder.glob(_NAME.format(whose, "*")):
            path.unlink(missing_ok=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """While a pass runs: what it makes counts, and what it reads is filled."""
        if self._limit is None:
            yield
        else:
            with _Watch(self):
                yield

    def made(self, storage: UntypedStorage, hot: bool = False) -> None:
        """From now on it counts, for as long as anything holds it."""
        if storage.nbytes() >= _SMALLEST and storage.resizable():
            self._held[storage._cdata] = _Held(StorageWeakRef(storage), storage.nbytes(), hot)

    def read(self, storage: UntypedStorage) -> None:
        """Fill it if it is parked; its file is done with."""
        held = self._held.get(storage._cdata)
        if held is not None and held.path is not None:
            _fill(storage, held)
            held.path.unlink(missing_ok=True)
            held.path = None
            self._held[storage._cdata] = self._held.pop(storage._cdata)

    @contextmanager
    def lent(self, *tensors: Tensor) -> Iterator[None]:
        """The tensors' values may be read; they are parked again afterwards."""
        storages = {storage._cdata: storage for storage in _storages(tensors)}
        held = ((storage, self._held.get(key)) for key, storage in storages.items())
        parked = [(storage, one) for storage, one in held if one is not None and one.path is not None]
        try:
            for storage, one in parked:
                _fill(storage, one)
            yield
        finally:
            for storage, _ in parked:
                storage.resize_(0)

    def join(self, parts: Sequence[Tensor], rows: slice = slice(None), dtype: torch.dtype | None = None) -> "Tensor | Filed":
        """`torch.cat(parts)[rows]`, floats as `dtype` if it is given, but for single numbers: a timestep needs its digits, and
        no room. May be parked; lies in a file if it has no room."""
        whole = joined(parts)[rows]
        if dtype is not None and whole.is_floating_point() and whole.ndim > 1:
            whole = whole.to(dtype)
        size = whole.numel() * whole.element_size()
        if self._limit is not None and size + self._count(hot=True) > self._limit:
            filed = Filed(self._path(), whole, parts[0].device)
            for part in self._cut(parts, rows):
                filed.append(part)
            return filed
        self.make_room(size)
        result = torch.empty_strided(whole.shape, whole.stride(), dtype=whole.dtype, device=parts[0].device)
        start = 0
        for part in self._cut(parts, rows):
            result[start : start + len(part)].copy_(part)
            start += len(part)
        if self._limit is not None:
            self.made(result.untyped_storage(), hot=True)
        return result

    def _cut(self, parts: Sequence[Tensor], rows: slice) -> Iterator[Tensor]:
        """What of each part is among these rows of them all; lent until the next."""
        first, last, _ = rows.indices(sum(len(part) for part in parts))
        for part in parts:
            own = slice(max(0, first), max(0, min(last, len(part))))
            first, last = first - len(part), last - len(part)
            if own.start < own.stop:
                with self.lent(part):
                    yield part[own]

    def make_room(self, size: int = 0) -> None:
        """Park what is cold until `size` bytes more would fit."""
        if self._limit is None:
            return
        self._forget()
        excess = size + self._count() - self._limit
        if excess <= 0:
            return
        kept = _attributes(self._networks)
        for key, held in self._held.items():
            if excess > 0 and not held.hot and held.path is None and key not in kept:
                excess -= held.size
                self._park(held)
        _give_back()

    def _count(self, hot: bool = False) -> int:
        """The bytes in memory, or the hot ones of them."""
        alive = (held for held in self._held.values() if not held.storage.expired())
        return sum(held.size for held in alive if held.path is None and (held.hot or not hot))

    def _forget(self) -> None:
        """What nothing holds any more."""
        for key in [key for key, held in self._held.items() if held.storage.expired()]:
            path = self._held.pop(key).path
            if path is not None:
                path.unlink(missing_ok=True)

    def _park(self, held: _Held) -> None:
        storage, path = _storage(held), self._path()
        host = storage.cpu()  # a copy of CUDA's, else the same
        with reported(path), path.open("wb") as file:
            file.write(bytes_of(host))
        held.size, held.path = storage.nbytes(), path
        storage.resize_(0)

    def _path(self) -> Path:
        return self._folder / _NAME.format(self._own, next(self._numbers))


UNLIMITED = Memory()


def _give_back() -> None:
    """Free memory goes back to the system: glibc would keep it between other pieces, where it still counts as the process's."""
    trim = getattr(ctypes.CDLL(None), "malloc_trim", None)
    if trim is not None:
        trim(0)


def _storage(held: _Held) -> UntypedStorage:
    return UntypedStorage._new_with_weak_ptr(held.storage.cdata)


def _fill(storage: UntypedStorage, held: _Held) -> None:
    """Give an empty storage the bytes that lie in its file."""
    assert held.path is not None
    host = UntypedStorage(held.size)
    with reported(held.path), held.path.open("rb") as file:
        if file.readinto(bytes_of(host)) != held.size:
            raise OSError("the file is cut short")
    storage.resize_(held.size)
    storage.copy_(host)


class _Watch(TorchDispatchMode):
    """Tells a memory which storages operations read, and which they make: those of results that are none of an argument."""

    def __init__(self, memory: Memory) -> None:
        super().__init__()
        self._memory = memory

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        given = {storage._cdata: storage for storage in _storages((args, kwargs))}
        for storage in given.values():
            self._memory.read(storage)
        result = func(*args, **kwargs)
        for storage in _storages(result):
            if storage._cdata not in given:
                self._memory.made(storage)
        return result


def _storages(tree: Any) -> Iterator[UntypedStorage]:
    leaves = (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
    return (leaf.untyped_storage() for leaf in leaves if leaf.layout == torch.strided)


def _attributes(networks: Sequence[nn.Module]) -> set[int]:
    """The storages of all tensors that modules keep, in lists and the like too."""
    values = (value for network in networks for module in network.modules() for value in vars(module).values())
    return {storage._cdata for storage in _storages([value for value in values if isinstance(value, _MAY_HOLD)])}
