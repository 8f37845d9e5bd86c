"""Which GPU, with what around it."""

from collections.abc import Iterator

import torch

from benchmarks.gpu.setup import Row, Setup
from qdexp import machine


def run(setup: Setup) -> Iterator[Row]:
    """A row for each fact."""
    found = machine.describe(setup.device)
    if setup.device.type == "cuda":
        free, _ = torch.cuda.mem_get_info(setup.device)
        found["gpu_free_gb"] = round(free / 2**30, 1)
    for what, value in found.items():
        yield {"what": what, "value": value}
