"""What memory is planned for a pass, beside what it takes: the tensors that are alive at once, as torch's profiler counts them
on a CPU and its allocator on a GPU, and by how much the process grows.

Numbers and grids are made up: none of them changes a byte.
"""

import os
from collections.abc import Callable, Iterator
from copy import deepcopy
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from benchmarks.subject import Subject
from qdexp import meter
from qdexp.footprint import passes
from qdexp.models.describe import describe
from qdexp.quant.blocks import call
from qdexp.quant.network import activation_quantizers, set_activation_mode

HEADER = ["a pass", "planned, MB", "live, MB", "planned / live", "process grows by, MB"]


def run(subject: Subject) -> Iterator[list[str]]:
    """A row of full precision, one of the quantized network, each with ``subject.rows`` rows."""
    model, device = subject.config.model, subject.device
    for title, quantized in (("full precision", False), (f"quantized, {subject.config.quant.label}", True)):
        meta = describe(model).network if quantized else passes.full(model)
        set_activation_mode(meta, "on")
        planned = passes.pass_bytes(model, subject.rows, 1, quantized, device.type == "cuda")
        network, batch = filled(meta, device), numbers(passes.batch_of(meta, model, subject.rows), device)

        @torch.no_grad()
        def once(network: nn.Module = network, batch: Any = batch) -> None:
            call(network, pytree.tree_map(torch.clone, batch))

        live, before = live_bytes(once, device), resident_bytes()
        grown = 2**20 * meter.measure(device, once)["peak_memory_mb"] - before
        yield [f"{title}, {subject.rows} rows", *(f"{size / 1e6:,.1f}" for size in (planned, live)), f"{planned / live:.3f}",
               f"{grown / 1e6:,.0f}"]  # fmt: skip


def resident_bytes() -> int:
    """Of this process, on Linux."""
    return int(Path("/proc/self/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def filled(network: nn.Module, device: torch.device = torch.device("cpu")) -> nn.Module:  # noqa: B008
    """A copy with numbers, in the order in which networks are built."""
    made = deepcopy(network).to_empty(device=device)
    for value in (*made.parameters(), *made.buffers()):
        nn.init.normal_(value, std=0.02) if value.is_floating_point() else nn.init.ones_(value)
    for _, quantizer in activation_quantizers(made):
        quantizer.scale.fill_(0.01)
    return made.to(memory_format=torch.channels_last)


def numbers(batch: Any, device: torch.device = torch.device("cpu")) -> Any:  # noqa: B008
    """A batch of the same shapes."""
    return pytree.tree_map(lambda leaf: torch.ones_like(leaf, device=device), batch)


def live_bytes(work: Callable[[], object], device: torch.device = torch.device("cpu")) -> int:  # noqa: B008
    """The most that torch's allocator has handed out at once, beyond what it had before."""
    if device.type == "cuda":
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = found.profiler.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
