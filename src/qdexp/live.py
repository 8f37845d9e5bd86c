"""Bytes of tensors that are alive at once while some code runs, on any device: on ``meta``, of computing that never happens.

What counts are the storages that torch's operators make, from the moment that they return until the storage is freed. What is
taken within an operator (a kernel's workspace) is not seen, nor what an allocator keeps for later.
"""

import weakref
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode


class Live(TorchDispatchMode):
    """Counts while it is entered; ``kind``: of devices, those alone (``cpu``, beside which ``meta`` takes nothing).

    A storage that an operator is given and that none has made was there before, and so are the views of it.

    Attributes:
        now: Bytes of the storages made since it was entered that are alive.
        peak: The most that these ever were.
    """

    def __init__(self, kind: str | None = None) -> None:
        super().__init__()
        self._kind = kind
        self.now = self.peak = 0
        self._made: set[int] = set()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and func is not torch.ops.prim.device.default:
            with self:  # in inference mode what consists of other operators arrives whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        given = {id(storage) for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        for storage in _storages(result):
            key = id(storage)
            if key not in self._made and key not in given and self._kind in (None, storage.device.type):
                size = storage.nbytes()
                self._made.add(key)
                self.now += size
                weakref.finalize(storage, self._free, key, size).atexit = False
        self.peak = max(self.peak, self.now)
        return result

    def _free(self, key: int, size: int) -> None:
        self._made.discard(key)
        self.now -= size


def own_bytes(network: nn.Module) -> int:
    """The bytes of a network's parameters and buffers, each storage once, and ``held_bytes`` of modules that keep these in
    another form."""
    tensors = (*network.parameters(), *network.buffers())
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    held: list[int] = [getattr(module, "held_bytes", 0) for module in network.modules()]
    return sum(storages.values()) + sum(held)


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    tensors = (leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
    return (
        tensor.untyped_storage() for tensor in tensors if not tensor.is_mkldnn
    )  # a weight in a kernel's own layout has none
