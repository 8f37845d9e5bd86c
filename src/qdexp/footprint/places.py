"""Places where stages run, and the memory of each: this machine, which jobs may share, or a job of a cluster."""

import subprocess
import sys
from abc import ABC, abstractmethod
from dataclasses import dataclass
from functools import cached_property

import torch

from qdexp.config import Cluster
from qdexp.recon.memory import free_device, free_host

GB = 1e9
CONTEXT = 1 * GB
"""Left on a GPU for CUDA's context and what kernels and the allocator take beside tensors: an allowance, not measured."""
PROCESS = 1 * GB
"""The bytes of a process that has loaded all libraries: 0.85 GB were measured on a CPU."""
_FREE = "import torch; print(min(torch.cuda.mem_get_info(index)[0] for index in range(torch.cuda.device_count())))"


@dataclass(frozen=True)
class Share:
    """Bytes that a stage may take, None: not known; ``told``: what says so; ``option``: lowered, there are more."""

    bytes: float | None
    told: str = ""
    option: str | None = None


@dataclass(frozen=True)
class Room:
    """The memory of the device and of the host. On a CPU both are the host's."""

    device: Share
    host: Share


class Place(ABC):
    """A place where the stages of a sweep run."""

    @abstractmethod
    def room(self, device: torch.device, cluster: Cluster, kind: str) -> Room:
        """The memory of a job of this kind."""

    @abstractmethod
    def told(self, device: torch.device, cluster: Cluster) -> str:
        """The memory of this place, in words."""


@dataclass(frozen=True)
class Here(Place):
    """This machine, with the memory that is free when it is first asked for.

    ``jobs``: how many processes run at once, ``on_gpu`` how many of them on one GPU; each may take its part of what is free.
    None: this very process computes. ``threads``: of each, None: as many as torch takes here.
    """

    jobs: int | None = None
    on_gpu: int = 1
    threads: int | None = None

    def room(self, device: torch.device, cluster: Cluster, kind: str) -> Room:
        gpu = self._free_on_gpu if device.type == "cuda" else None
        return Room(
            _part(gpu, "free on the GPU here", self.on_gpu, "hydra.launcher.jobs_per_gpu"),
            _part(self._free, "free here", self.jobs or 1, "hydra.launcher.jobs"),
        )

    def told(self, device: torch.device, cluster: Cluster) -> str:
        room = self.room(device, cluster, "")
        return ", ".join(f"{gigabytes(one.bytes)} GB {one.told}" for one in (room.device, room.host) if one.bytes is not None)

    @cached_property
    def _free(self) -> int:
        return free_host()

    @cached_property
    def _free_on_gpu(self) -> int | None:
        return free_device(torch.device("cuda")) if self.jobs is None else free_on_gpus()


def _part(free: float | None, told: str, jobs: int, option: str) -> Share:
    if free is None or jobs == 1:
        return Share(free, told)
    return Share(free / jobs, f"{told} for each of {jobs} jobs", f"{option}={jobs}")


def free_on_gpus() -> int | None:
    """Bytes that are free on every GPU of this machine; None where none tells.

    Asked by a process that ends: to ask starts CUDA, which keeps memory, and all of a GPU that takes one process alone.
    """
    asked = subprocess.run([sys.executable, "-c", _FREE], capture_output=True, text=True)
    return int(asked.stdout) if asked.returncode == 0 else None


class OnCluster(Place):
    """Machines that ``cluster`` describes."""

    def room(self, device: torch.device, cluster: Cluster, kind: str) -> Room:
        asked, gpu = cluster.resources(kind).memory_gb, cluster.gpu_memory_gb
        place = kind if kind in cluster.stages else "default"
        return Room(
            Share(None) if gpu is None else Share(gpu * GB - CONTEXT, f"cluster.gpu_memory_gb={gpu:g} leaves"),
            Share(None) if asked is None else Share(asked * GB - PROCESS, f"cluster.stages.{place}.memory_gb={asked:g} leaves"),
        )

    def told(self, device: torch.device, cluster: Cluster) -> str:
        asked = sorted({one.memory_gb for one in cluster.stages.values() if one.memory_gb is not None})
        gpu = "GPUs of unknown memory (cluster.gpu_memory_gb)"
        if cluster.gpu_memory_gb is not None:
            gpu = f"GPUs of {cluster.gpu_memory_gb:g} GB (cluster.gpu_memory_gb)"
        host = f"{' or '.join(f'{one:g}' for one in asked)} GB (cluster.stages)" if asked else "unknown memory (cluster.stages)"
        return f"{gpu}, jobs with {host}"


def gigabytes(count: float) -> str:
    """10^9 bytes, as a person reads them."""
    return f"{count / GB:.1f}" if count < 99.95 * GB else f"{count / GB:,.0f}"
