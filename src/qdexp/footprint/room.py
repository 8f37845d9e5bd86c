"""What there is room for, and what is told where a stage has none."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch

from qdexp.config import Cluster, Config
from qdexp.errors import UserError
from qdexp.footprint.needs import Need, Part, need_of, total
from qdexp.recon.memory import free_device, free_host
from qdexp.stages.base import Stage

GB = 1e9
CONTEXT = 1 * GB
"""Left on a GPU for CUDA's context and what kernels and the allocator take beside tensors: an allowance, not measured."""
PROCESS = 1 * GB
"""Of a process that has loaded all libraries: 0.85 GB were measured on a CPU."""
OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
"""What is raised where there is no more, on a GPU and in the host's memory."""
LARGEST = 3
"""Parts of a need that are named, at most."""
NAMED = 0.1
"""The least share of a need that a part has which is named."""


@dataclass(frozen=True)
class Room:
    """Bytes for a stage on the device and in the host's memory, None: not known; and what says so.

    On a CPU both are the host's.
    """

    device: float | None
    host: float | None
    device_told: str
    host_told: str

    @classmethod
    def here(cls, device: torch.device) -> "Room":
        """What is free on this machine."""
        gpu = free_device(device) if device.type == "cuda" else None
        return cls(gpu, free_host(), "free on the GPU here", "free here")

    @classmethod
    def of_job(cls, cluster: Cluster, kind: str) -> "Room":
        """What a job of this kind has on a cluster."""
        asked, gpu = cluster.resources(kind).memory_gb, cluster.gpu_memory_gb
        place = kind if kind in cluster.stages else "default"
        return cls(
            None if gpu is None else gpu * GB - CONTEXT,
            None if asked is None else asked * GB - PROCESS,
            f"cluster.gpu_memory_gb={gpu:g} leaves" if gpu is not None else "",
            f"cluster.stages.{place}.memory_gb={asked:g} leaves" if asked is not None else "",
        )


def shares(need: Need, device: torch.device) -> tuple[Sequence[Part], Sequence[Part]]:
    """The parts that lie on a GPU, and those in the host's memory: on a CPU all of them."""
    return (need.device, need.host) if device.type == "cuda" else ((), need.device + need.host)


def misfits(name: str, need: Need, device: torch.device, room: Room) -> Iterator[str]:
    """A line for the device and one for the host, where a stage takes more than there is room for."""
    on_device, on_host = shares(need, device)
    for parts, free, told, where in (
        (on_device, room.device, room.device_told, "on the GPU"),
        (on_host, room.host, room.host_told, "of the host's memory"),
    ):
        if free is not None and total(parts) > free:
            yield (f"{name}: takes {gigabytes(total(parts))} GB {where} ({named(parts)}), {told} "
                   f"{gigabytes(max(0, free))}; {_fix(parts, free, where)}")  # fmt: skip


def named(parts: Sequence[Part]) -> str:
    """The largest parts, in words."""
    whole = total(parts)
    largest = sorted(parts, key=lambda part: -part.bytes)[:LARGEST]
    return ", ".join(f"{part.what} {gigabytes(part.bytes)}" for part in largest if part.bytes >= NAMED * whole)


def gigabytes(count: float) -> str:
    """10^9 bytes, as a person reads them."""
    return f"{count / GB:.1f}" if count < 99.95 * GB else f"{count / GB:,.0f}"


def _fix(parts: Sequence[Part], free: float, where: str) -> str:
    largest = max(parts, key=lambda part: (part.option is not None, part.bytes))
    if largest.option is None:
        return f"there is no option for less {where}: it takes a larger machine"
    left = free - (total(parts) - largest.bytes)
    fits = int(left / largest.bytes * largest.value)
    advice = f"about {fits} would fit" if fits >= 1 else "and even 1 may not fit: it takes a larger machine then"
    return f"lower {largest.option}={largest.value}: {advice}"


def explained(stage: Stage, config: Config, error: Exception) -> Exception:
    """The error, or where memory has run out one that says what was planned, and what to set."""
    if not isinstance(error, OUT_OF_MEMORY):
        return error
    try:
        need = need_of(stage, config)
    except Exception:  # there may be too little memory for that
        return error
    device, host = shares(need, stage.device)
    told = " ".join(str(error).split(". ")[0].split()) or "memory ran out"
    places = {"on the GPU": device, "of the host's memory": host}
    planned = [f"{gigabytes(total(parts))} GB {where} ({named(parts)})" for where, parts in places.items() if parts]
    options = dict.fromkeys(part.option for part in sorted(device or host, key=lambda part: -part.bytes) if part.option)
    if need.rows:
        options["memory.device_gb" if device else "memory.host_gb"] = None
    fix = f"lower {' or '.join(options)}, or " if options else ""
    return UserError(f"{stage.name}: {told}; planned were {' and '.join(planned) or 'no bytes that can be traced'}; {fix}see "
                     f"that nothing else takes the memory; what is finished is kept")  # fmt: skip
