"""The cost of a piece of work: wall-clock time and peak memory."""

import contextlib
import resource
import sys
import time
from collections.abc import Callable
from pathlib import Path

import torch

_STATUS, _CLEAR = Path("/proc/self/status"), Path("/proc/self/clear_refs")


def measure(device: torch.device, work: Callable[[], None]) -> dict[str, float]:
    """Runs ``work``; its wall-clock ``seconds`` and its ``peak_memory_mb`` (MiB: of the process, or of the CUDA allocator)."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
    else:
        with contextlib.suppress(OSError):  # Linux, where it is allowed: start the peak again from here
            _CLEAR.write_text("5")
    start = time.perf_counter()
    work()
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return {"seconds": round(time.perf_counter() - start, 3), "peak_memory_mb": round(_peak_bytes(device) / 2**20, 1)}


def _peak_bytes(device: torch.device) -> int:
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    lines = _STATUS.read_text().splitlines() if _STATUS.exists() else []
    peaks = [int(line.split()[1]) * 1024 for line in lines if line.startswith("VmHWM")]
    if peaks:
        return peaks[0]
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
