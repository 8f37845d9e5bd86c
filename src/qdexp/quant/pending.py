"""Tensors that the passes of streams hold while they stand at an entrance: pending shortcuts, calls, outputs.

It moves at entrances alone: what a pass has parked is brought back before it goes on. A parked tensor keeps its identity, shape
and aliases; its storage alone is emptied, and filled again. Nothing else may read it meanwhile, so what a pass shares is never
parked: what modules keep, and what a second pass has seen too, such as a table that a function remembers.
"""

import weakref
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from operator import itemgetter
from typing import Any

import torch
from torch import Tensor, UntypedStorage, nn
from torch.utils import _pytree as pytree

from qdexp.quant.ahead import Reader
from qdexp.quant.scratch import Scratch, bytes_of

_SMALLEST = 4096
"""Bytes of the smallest storage that counts."""
_MAY_HOLD = (Tensor, dict, list, tuple)


@dataclass(eq=False)
class Held:
    """A storage that a pass holds; `turn` is None where others hold it too. `parked`: its bytes while it is empty, in the
    host's memory or from this place of the scratch space on."""

    storage: "weakref.ref[UntypedStorage]"
    size: int
    turn: "Turn | None"
    parked: "Tensor | int | None" = None


@dataclass(eq=False)
class Turn:
    """A pass, as the cache knows it. `number`: of its last run; `settled`: another pass has run since, which has seen what they
    share; `coming`: what it has parked is on its way."""

    held: list[Held] = field(default_factory=list)
    number: int = 0
    settled: bool = False
    coming: "Future[list[Tensor]] | None" = None


class Pending:
    """All that passes of `networks` hold on `device`."""

    def __init__(self, device: torch.device, scratch: Scratch, networks: Sequence[nn.Module]) -> None:
        self._device, self._scratch, self._networks = device, scratch, networks
        self._known: dict[int, Held] = {}  # by the storage's id
        self._last = Turn()

    def see(self, turn: Turn, tree: Any) -> None:
        """A pass holds these tensors, others perhaps too."""
        for storage in _storages(tree, self._device):
            known = self._known.get(id(storage))
            if known is None and storage.nbytes() >= _SMALLEST and storage.resizable():
                turn.held.append(self._new(storage, turn))
            elif known is not None and known.turn is not turn:
                self._share(known)

    def keep(self, tree: Any) -> None:
        """Mark tensors that are not the passes' own."""
        for storage in _storages(tree, self._device):
            self._share(self._known.get(id(storage)) or self._new(storage, None))

    def _new(self, storage: UntypedStorage, turn: Turn | None) -> Held:
        key = id(storage)
        held = Held(weakref.ref(storage, lambda _: self._gone(key)), storage.nbytes(), turn)
        self._known[key] = held
        return held

    def _share(self, held: Held) -> None:
        if held.turn is not None:
            self._restored([held])
            self._drop(held)
            held.turn.held.remove(held)
            held.turn = None

    def _gone(self, key: int) -> None:
        """Nothing holds the storage any more."""
        self._drop(self._known.pop(key))

    def begin(self, turn: Turn, reader: Reader) -> None:
        """Begin to bring back what the pass has parked."""
        if turn.coming is None:
            turn.coming = reader.begin(partial(self._restored, list(turn.held)))

    def arrive(self, turn: Turn, reader: Reader) -> None:
        """Finish bringing back what the pass has parked."""
        assert turn.coming is not None
        reader.take(turn.coming)
        turn.coming = None
        for held in turn.held:
            self._drop(held)

    def ran(self, turn: Turn) -> None:
        """A pass has come to its next entrance: what the one before holds, and it has not seen, is that one's own."""
        turn.held = [held for held in turn.held if held.storage() is not None]
        turn.number, turn.settled, self._last.settled = self._last.number + 1, False, True
        self._last = turn

    def restore_all(self) -> None:
        """Bring back everything that outlives the passes, for others to read."""
        self._restored(self._known.values())
        for held in self._known.values():
            self._drop(held)

    @contextmanager
    def lent(self, *tensors: Tensor) -> Iterator[None]:
        """The tensors' values may be read; they are parked again afterwards."""
        keys = {id(storage) for storage in _storages(tensors, self._device)}
        parked = [self._known[key] for key in keys if key in self._known and self._known[key].parked is not None]
        try:
            self._restored(parked)
            yield
        finally:
            for held in parked:
                _empty(held)

    def there(self) -> int:
        """Bytes on the device."""
        return sum(held.size for held in self._all() if held.parked is None)

    def in_host(self) -> int:
        """Bytes that are parked in the host's memory."""
        return sum(held.size for held in self._all() if isinstance(held.parked, Tensor))

    def park(self, excess: int, room: int) -> None:
        """Park at least so many bytes, as far as they can be, and of these not more than `room` in the host's memory. The pass
        that ran last waits longest."""
        self.keep(_attributes(self._networks))
        may = ((held, held.turn) for held in self._known.values() if held.turn is not None and held.parked is None)
        mine = [(turn.number, held) for held, turn in may if turn.settled and turn.coming is None]
        for _, held in sorted(mine, key=itemgetter(0), reverse=True):
            if excess <= 0:
                break
            storage = held.storage()
            if storage is not None:
                excess -= held.size
                host = in_host(held.size, self._device).copy_(_bytes(storage), non_blocking=True) if held.size <= room else None
                held.parked = self._written(storage.cpu()) if host is None else host
                room -= 0 if host is None else held.size
                _empty(held)

    def leave_host(self, excess: int) -> None:
        """Move at least so many bytes of what is parked in the host's memory to scratch space."""
        for held in self._all():
            if excess > 0 and isinstance(held.parked, Tensor):
                excess -= held.size
                _wait(self._device)
                held.parked = self._written(held.parked.untyped_storage())

    def _all(self) -> list[Held]:
        return [held for held in self._known.values() if held.turn is not None]

    def _restored(self, parked: Iterable[Held]) -> list[Tensor]:
        """Fill them: views of their bytes."""
        return [view for held in parked if (view := self._restore(held)) is not None]

    def _restore(self, held: Held) -> Tensor | None:
        storage = held.storage()
        if storage is None or held.parked is None:
            return None
        storage.resize_(held.size)
        view = _bytes(storage)
        if isinstance(held.parked, Tensor):
            return view.copy_(held.parked, non_blocking=True)
        host = view if view.device.type == "cpu" else in_host(held.size, self._device)
        self._scratch.read(held.parked, bytes_of(host.untyped_storage()))
        return view if host is view else view.copy_(host, non_blocking=True)

    def _written(self, host: UntypedStorage) -> int:
        start = self._scratch.take(host.nbytes())
        self._scratch.write(start, bytes_of(host))
        return start

    def _drop(self, held: Held) -> None:
        """Release the copy of a tensor."""
        if isinstance(held.parked, int):
            self._scratch.give(held.parked, held.size)
        held.parked = None


def in_host(size: int, device: torch.device) -> Tensor:
    """Bytes of the host's memory, without values; pinned where they come from or go to CUDA."""
    return torch.empty(size, dtype=torch.uint8, pin_memory=device.type == "cuda")


def _wait(device: torch.device) -> None:
    """Wait until what was copied to the host is there."""
    if device.type == "cuda":
        torch.cuda.current_stream(device).synchronize()


def _bytes(storage: UntypedStorage) -> Tensor:
    """A view of the bytes of a storage."""
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage, 0, (storage.nbytes(),), (1,))


def _empty(held: Held) -> None:
    storage = held.storage()
    if storage is not None:
        storage.resize_(0)


def _storages(tree: Any, device: torch.device) -> Iterator[UntypedStorage]:
    leaves = (leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor))
    return (leaf.untyped_storage() for leaf in leaves if leaf.layout == torch.strided and leaf.device.type == device.type)


def _attributes(networks: Sequence[nn.Module]) -> list[Any]:
    """All that modules keep, in lists and the like too."""
    values = (value for network in networks for module in network.modules() for value in vars(module).values())
    return [value for value in values if isinstance(value, _MAY_HOLD)]
