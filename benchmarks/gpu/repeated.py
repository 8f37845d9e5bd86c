"""Whether the device gives the same bits each time: a cell run twice, and once more, killed and resumed."""

import hashlib
import json
import os
import signal
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.apart import DiedError
from benchmarks.gpu.setup import Row, Setup
from qdexp import files
from qdexp.cell import Cell, preflight
from qdexp.layout import Layout

CELLS = {"ddpm_fashion": "qdiffusion", "dit_fashion": "reconstruction"}
BLOCKS = 3
"""The files of finished blocks after which a process is killed."""


def run(setup: Setup) -> Iterator[Row]:
    """Two rows for each model: run again; killed and resumed."""
    for model, method in CELLS.items():
        arguments = (model, method)
        with (
            setup.apart(digests, *arguments, "once") as first,
            setup.apart(digests, *arguments, "again") as second,
            setup.apart(digests, *arguments, "killed", BLOCKS) as killed,
        ):
            try:
                told = f"not killed, it had not {BLOCKS} blocks" if list(killed) else ""
            except DiedError as died:
                if died.code != -signal.SIGKILL:
                    raise
                told = f"killed after {BLOCKS} blocks, resumed"
            (once,), (again,) = first, second
        (resumed,) = setup.rows(digests, *arguments, "killed")
        for what, found in (("run again", again), (told, resumed)):
            yield {"cell": f"{model}, {method}", "against one run": what, **compared(once, found)}


def digests(setup: Setup, model: str, method: str, out: str, blocks: int | None = None) -> Iterator[dict[str, str]]:
    """The digests of what the cell leaves; with ``blocks`` the process kills itself after that many."""
    if blocks is not None:
        kill_after(blocks)
    cell = preflight(setup.cell(model, f"method={method}", f"out={setup.folder / model / out}"))
    cell.run()
    yield digests_of(cell)


def digests_of(cell: Cell) -> dict[str, str]:
    """SHA-256 of all tensors that the cell's stages left, by ``stage/file``."""
    folders = {role: Layout(cell.out).entry(stage.entry) for role, stage in cell.stages.items()}
    return {
        f"{role}/{path.relative_to(folder)}": files.sha256(path)
        for role, folder in folders.items()
        for path in sorted(folder.rglob("*.safetensors"))
    }


def compared(once: Mapping[str, str], other: Mapping[str, str]) -> Row:
    """How many files there are, how many differ, and of which stages; the checkpoints and the samples of the other run."""
    differ = [name for name in dict.fromkeys([*once, *other]) if once.get(name) != other.get(name)]
    stages = dict.fromkeys(name.partition("/")[0] for name in differ)
    checkpoints = {name: digest for name, digest in other.items() if "/checkpoint/" in name}
    samples = {name: digest for name, digest in other.items() if name.startswith("samples/")}
    return {
        "files": len(once),
        "differ": len(differ),
        "in": ", ".join(stages) or "-",
        "SHA-256 of checkpoints": joined(checkpoints),
        "of samples": joined(samples),
    }


def joined(found: Mapping[str, str]) -> str:
    """One digest of all of them, or as much of it as tells them apart."""
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def kill_after(blocks: int) -> None:
    """Ends this process by SIGKILL as soon as that many blocks are finished."""
    write, finished = files.write_tensors, 0

    def writing(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Any = None) -> None:
        nonlocal finished
        write(path, tensors, metadata)
        finished += path.name.startswith(".weights-")
        if finished == blocks:
            os.kill(os.getpid(), signal.SIGKILL)

    files.write_tensors = writing
