"""Memory budgets in bytes from the options of ``memory``: what is free here, less a margin, and the folder for the rest."""

import math
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryFile
from typing import Literal

import torch

from qdexp.config.memory import AUTO, Memory
from qdexp.errors import UserError
from qdexp.quant.cache import Budgets

DEVICE_SHARE, HOST_SHARE = 0.5, 0.75
"""The shares of what is free that rows may take: the rest is for the passes, the iterations and whatever else the process
does."""
TEMPORARY = ("SLURM_TMPDIR", "TMPDIR")
"""Variables that name a folder on the node's own disk, the most particular first."""
_PROC, _CGROUPS = Path("/proc"), Path("/sys/fs/cgroup")


def budgets(memory: Memory, device: torch.device, folder: Path) -> Budgets:
    """The budgets in bytes; ``folder``: scratch space where neither the options nor the node name any.

    Raises UserError where the folder that is named cannot be used.
    """
    check_scratch(memory)
    host = _bytes(memory.host_gb, lambda: HOST_SHARE * free_host())
    scratch = _scratch(memory) or folder
    if device.type == "cpu":
        return Budgets(device=host, host=0, scratch=scratch)
    own = _bytes(memory.device_gb, lambda: DEVICE_SHARE * free_device(device))
    return Budgets(device=own, host=host, scratch=scratch)


def _bytes(given: float | Literal["auto"], free: Callable[[], float]) -> int:
    return int(free() if given == AUTO else given * 1e9)


def bytes_a_batch(shape: Sequence[int], rows: int) -> int:
    """The bytes of a batch of the network's input in float32: the least that rows of a block take."""
    return 4 * rows * math.prod(shape)


def check(memory: Memory, batch: int) -> None:
    """Raises UserError where a budget has no room for ``batch`` bytes, those of one batch of the network's input."""
    for name in ("device_gb", "host_gb"):
        given = getattr(memory, name)
        if given != AUTO and 0 < given * 1e9 < batch:
            raise UserError(f"memory.{name}={given:g}: a batch of the network's input alone takes {batch / 1e9:.2g} GB; give "
                            f"more, auto, or 0 to leave this tier out")  # fmt: skip


def check_scratch(memory: Memory) -> None:
    """Raises UserError where the folder that is named cannot be used."""
    if memory.scratch != AUTO and (wrong := _unusable(Path(memory.scratch))):
        raise UserError(f"memory.scratch={memory.scratch}: {wrong}; name a folder on the node's own disk that can be written "
                        f"to, or auto")  # fmt: skip


def _scratch(memory: Memory) -> Path | None:
    """The folder that is named, or the first of the node's own that can be used."""
    if memory.scratch != AUTO:
        return Path(memory.scratch)
    named = (Path(os.environ[name]) for name in TEMPORARY if os.environ.get(name))
    return next((folder for folder in named if not _unusable(folder)), None)


def _unusable(folder: Path) -> str:
    """Why no file can be made there; empty where one can."""
    try:
        with TemporaryFile(dir=folder):
            return ""
    except OSError as error:
        return error.strerror or str(error)


def free_device(device: torch.device) -> int:
    """Bytes of a CUDA device that nobody uses, those included that torch keeps for later."""
    free, _ = torch.cuda.mem_get_info(device)
    return free + torch.cuda.memory_reserved(device) - torch.cuda.memory_allocated(device)


def free_host() -> int:
    """Bytes of the host's memory that this process may still take: what is available, within the limits of its cgroups."""
    found = [line.split()[1] for line in _lines(_PROC / "meminfo") if line.startswith("MemAvailable:")]
    available = int(found[0]) * 1024 if found else os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    return max(0, min([available, *_left_by_cgroups()]))


def _left_by_cgroups() -> Iterator[int]:
    """Yield what each limit around this process leaves; files that the kernel keeps in memory may go."""
    for line in _lines(_PROC / "self" / "cgroup"):
        _, controllers, path = line.split(":", 2)
        if controllers in ("", "memory"):
            root = _CGROUPS / controllers
            limit, used, cached = ("memory.max", "memory.current", "inactive_file")
            if controllers:
                limit, used, cached = ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_inactive_file")
            own = root / path.strip("/")
            for folder in (own, *own.parents):
                values = [_number(folder / name) for name in (limit, used)]
                if values[0] is not None and values[1] is not None:
                    stat = dict(line.split(None, 1) for line in _lines(folder / "memory.stat"))
                    yield values[0] - values[1] + int(stat.get(cached, 0))


def _number(path: Path) -> int | None:
    """Read a number; None where there is none, such as ``max``."""
    text = "".join(_lines(path))
    return int(text) if text.isdigit() else None


def _lines(path: Path) -> list[str]:
    try:
        return path.read_text().splitlines()
    except OSError:
        return []
