"""The machine that this process runs on: what tells its timings from those of another one."""

import hashlib
import json
import os
import platform
import re
from functools import cache
from pathlib import Path
from typing import Any

import torch

DIGITS = 12
"""The digits of a digest: enough for all machines that anybody compares."""


def describe(device: torch.device) -> dict[str, Any]:
    """The machine, as far as it computes on ``device``.

    Returns:
        ``digest``, equal for machines of which all that follows is equal; ``processor``, its name; ``cores`` that this process
        may run on, and the ``threads`` that torch computes with; ``memory_gb``, GiB; ``torch``, its version, and a digest of
        its ``build`` (compiler, libraries, the instructions that it uses); of a CUDA device ``gpu``, ``gpu_memory_gb``, GiB,
        its compute ``capability``, the versions of the ``driver``, of ``cuda`` and of ``cudnn``; null on a CPU, and where there
        is no such device here.
    """
    found = {**_host(), "threads": torch.get_num_threads(), **_gpu(device)}
    told = json.dumps(found, sort_keys=True)
    return {"digest": hashlib.sha256(told.encode()).hexdigest()[:DIGITS], **found}


def kind(device: torch.device) -> str:
    """All of the machine that may change a result's last bits, in a few words, but for what is part of every key."""
    found = describe(device)
    if found["gpu"] is None:
        return f"{found['processor']}, {_threads(found)}, torch build {found['build']}"
    versions = ", ".join(f"{name} {found[name]}" for name in ("driver", "cuda", "cudnn"))
    return f"{found['gpu']}, compute capability {found['capability']}, {versions}"


def line(device: torch.device) -> str:
    """The machine in a few words, with its digest: ``AMD EPYC 7B13, 2 threads (1a2b3c4d5e6f)``."""
    found = describe(device)
    return f"{found['gpu'] or found['processor']}, {_threads(found)} ({found['digest']})"


def _threads(found: dict[str, Any]) -> str:
    return f"{found['threads']} thread" + ("s" if found["threads"] > 1 else "")


@cache
def _host() -> dict[str, Any]:
    memory = os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    build = hashlib.sha256(torch.__config__.show().encode()).hexdigest()[:DIGITS]
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return {
        "processor": _processor(),
        "cores": cores,
        "memory_gb": round(memory / 2**30),
        "torch": torch.__version__,
        "build": build,
    }


def _processor() -> str:
    """The CPU's name, which only Linux tells."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text().splitlines() if info.exists() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _gpu(device: torch.device) -> dict[str, Any]:
    if device.type != "cuda" or not torch.cuda.is_available():  # a failure may be recorded where there is none
        return dict.fromkeys(("gpu", "gpu_memory_gb", "capability", "driver", "cuda", "cudnn"))
    properties = torch.cuda.get_device_properties(device)
    return {
        "gpu": properties.name,
        "gpu_memory_gb": round(properties.total_memory / 2**30),
        "capability": f"{properties.major}.{properties.minor}",
        "driver": _driver(),
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


@cache
def _driver() -> str | None:
    """The version of NVIDIA's kernel module, where that tells it."""
    told = Path("/proc/driver/nvidia/version")
    found = re.search(r"Module\s+(?:for \S+\s+)?(\d[\d.]+)", told.read_text()) if told.exists() else None
    return found.group(1) if found else None
