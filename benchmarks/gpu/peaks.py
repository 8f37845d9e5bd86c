"""The peak of CUDA's allocator beside the plan, at full width with random weights: passes, and a step of learning."""

from collections.abc import Iterator

import torch

from benchmarks import memory
from benchmarks.gpu.setup import Row, Setup
from benchmarks.subject import Subject
from qdexp import device as devices
from qdexp.config import Model
from qdexp.footprint import passes, walks

MODELS = ("ldm_bedroom", "sd_v1_4")
ROWS = 8
TITLES = {walks.WEIGHTS: "learning weights", walks.SCALES: "learning scales"}


COLUMNS = memory.HEADER[:-1]  # by how much the process grows, the allocator does not tell


def run(setup: Setup) -> Iterator[Row]:
    """Rows of passes and of the dearest block's step, for each model."""
    count = 2 if setup.small else ROWS
    for name in MODELS:
        config = setup.wide(name, "method=reconstruction")
        found = [row[: len(COLUMNS)] for row in memory.run(Subject(config, count, setup.folder))]
        yield from ({"model": name, **dict(zip(COLUMNS, row, strict=True))} for row in found)
        for kind, title in TITLES.items():
            planned = walks.walked(config.model, kind, count, "nearest").step
            live = _dearest_step(config.model, kind, count, setup.device)
            row = memory.compared(f"{title}, {count} rows", planned, live)
            yield {"model": name, **dict(zip(COLUMNS, row, strict=True))}


def _dearest_step(model: Model, kind: str, count: int, device: torch.device) -> int:
    network, full = memory.learned_networks(model, kind, device)
    rows = memory.numbers(passes.batch_of(network, model, count), device)
    with devices.deterministic(model.name):  # as blocks are learned
        return max(memory.training_steps(kind, network, full, walks.blocks(model), rows))
