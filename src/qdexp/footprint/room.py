"""The comparison of what stages need with the room that there is, and the message where a stage has none."""

from collections.abc import Iterator, Sequence

import torch

from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.footprint.needs import Need, Part, need_of, total
from qdexp.footprint.places import Room, Share, gigabytes
from qdexp.stages.base import Stage

OUT_OF_MEMORY = (torch.OutOfMemoryError, MemoryError)
"""The errors of memory that has run out, on a GPU and in the host's memory."""
LARGEST = 3
"""Parts of a need that are named, at most."""
NAMED = 0.1
"""The least share of a need that a part has which is named."""


def shares(need: Need, device: torch.device) -> tuple[Sequence[Part], Sequence[Part]]:
    """The parts that lie on a GPU, and those in the host's memory: on a CPU all of them."""
    return (need.device, need.host) if device.type == "cuda" else ((), need.device + need.host)


def misfits(name: str, need: Need, device: torch.device, room: Room) -> Iterator[str]:
    """A line for the device and one for the host, where a stage takes more than there is room for."""
    on_device, on_host = shares(need, device)
    for parts, share, where in ((on_device, room.device, "on the GPU"), (on_host, room.host, "of the host's memory")):
        if share.bytes is not None and total(parts) > share.bytes:
            yield (f"{name}: takes {gigabytes(total(parts))} GB {where} ({named(parts)}), {share.told} "
                   f"{gigabytes(max(0, share.bytes))}; {_fix(parts, share, share.bytes, where)}")  # fmt: skip


def named(parts: Sequence[Part]) -> str:
    """The largest parts, in words."""
    whole = total(parts)
    largest = sorted(parts, key=lambda part: -part.bytes)[:LARGEST]
    return ", ".join(f"{part.what} {gigabytes(part.bytes)}" for part in largest if part.bytes >= NAMED * whole)


def _fix(parts: Sequence[Part], share: Share, free: float, where: str) -> str:
    largest = max(parts, key=lambda part: (part.option is not None, part.bytes))
    fewer = "" if share.option is None else f"lower {share.option}"
    if largest.option is None:
        return fewer or f"there is no option for less {where}: it takes a larger machine"
    left = free - (total(parts) - largest.bytes)
    fits = int(left / largest.bytes * largest.value)
    advice = f"about {fits} would fit" if fits >= 1 else "and even 1 may not fit: it takes a larger machine then"
    return f"lower {largest.option}={largest.value}: {advice}" + (f"; or {fewer}" if fewer else "")


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
