"""The memory that one forward pass of the network takes beside the network, as the cell runs it.

On CUDA: how far the allocator's peak lies above what was taken before the pass. On a CPU, where torch keeps no such count: the
most bytes that tensors hold which the pass has made (``qdexp.live``). The input counts with neither.
"""

import gc
from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch

from qdexp import device as devices
from qdexp import machine
from qdexp.config import Config
from qdexp.live import Live, own_bytes
from qdexp.metrics.base import RUNNING, Material, Metric, Result
from qdexp.numbers import Number


@dataclass(frozen=True, kw_only=True)
class Memory(Metric):
    """MB (10^6 bytes) that a pass takes, of one image and of ``sampling.batch``, and that the network's tensors take."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "memory_mb",
            "MB of a pass, one image",
            kind="cost",
            shown=("overview",),
            meaning="10^6 bytes that one forward pass of one image takes beside the network.",
        ),
        Number(
            "memory_batch_mb",
            "MB of a pass, a batch",
            kind="cost",
            shown=("overview",),
            meaning="10^6 bytes that one forward pass of sampling.batch images takes beside the network.",
        ),
        Number(
            "memory_network_mb",
            "MB of the network",
            kind="cost",
            shown=("overview",),
            meaning="10^6 bytes that the network's tensors take.",
        ),
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


def peak_bytes(work: Callable[[], object], device: torch.device) -> int:
    """The most that ``work`` takes at once beyond what is taken before it."""
    gc.collect()
    if device.type != "cuda":
        with Live() as live:
            work()
        return live.peak
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    work()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before
