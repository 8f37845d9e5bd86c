"""What memory one forward pass of the network takes beside the network, as the cell runs it.

On CUDA: how far the allocator's peak lies above what was taken before the pass. On a CPU, where torch keeps no such count: the
most bytes that the storages of tensors hold which the pass has made, after each of torch's operators; what is taken within an
operator is not seen. The input counts with neither.
"""

import gc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

from qdexp import device as devices
from qdexp import machine
from qdexp.config import Config
from qdexp.metrics.base import RUNNING, Material, Metric, Result
from qdexp.numbers import Number


@dataclass(frozen=True, kw_only=True)
class Memory(Metric):
    """MB (10^6 bytes) that a pass takes, of one image and of ``sampling.batch``, and that the network's tensors take."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number("memory_mb", "MB of a pass, one image", kind="cost", shown=("overview",)),
        Number("memory_batch_mb", "MB of a pass, a batch", kind="cost", shown=("overview",)),
        Number("memory_network_mb", "MB of the network", kind="cost", shown=("overview",)),
    )
    needs: ClassVar[frozenset[str]] = frozenset({RUNNING})
    portable: ClassVar[bool] = False

    def identity(self, config: Config) -> dict[str, str]:
        found = machine.describe(devices.resolve(config.device))
        return {"counted": found["gpu"] or "tensors on the CPU", "batch": f"{config.sampling.batch}"}

    def measure(self, material: Material) -> dict[str, Result]:
        running, found = material.running(), dict[str, Result]()
        for name, rows in (("memory", 1), ("memory_batch", running.batch)):
            call = running.forward(rows)
            call()  # what is made at a first call, and stays, is the network's
            found[f"{name}_mb"] = peak_bytes(call, material.device) / 1e6
        return found | {"memory_network_mb": own_bytes(running.network) / 1e6}


def own_bytes(network: nn.Module) -> int:
    """Of the storages of a network's parameters and buffers, each once."""
    tensors = (*network.parameters(), *network.buffers())
    storages = {tensor.untyped_storage()._cdata: tensor.untyped_storage().nbytes() for tensor in tensors}
    return sum(storages.values())


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most that ``work`` takes at once beyond what is taken before it."""
    gc.collect()
    if device.type != "cuda":
        with _Live() as live:
            work()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


class _Live(TorchDispatchMode):
    """Knows the storages that were made since it was entered and are alive, and the ``peak`` of their bytes.

    A storage that an operator is given and that none has made was there before, and so are the views of it.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._made: dict[int, tuple[StorageWeakRef, int]] = {}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if isinstance(func, torch._ops.OpOverload) and func is not torch.ops.prim.device.default:
            with self:  # in inference mode what consists of other operators arrives whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        given = {storage._cdata for storage in _storages((args, kwargs))}
        result = func(*args, **kwargs)
        self._made = {key: one for key, one in self._made.items() if not one[0].expired()}
        for storage in _storages(result):
            if storage._cdata not in given:
                self._made[storage._cdata] = StorageWeakRef(storage), storage.nbytes()
        self.peak = max(self.peak, sum(size for _, size in self._made.values()))
        return result


def _storages(value: Any) -> Iterator[torch.UntypedStorage]:
    return (leaf.untyped_storage() for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor))
