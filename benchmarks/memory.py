"""What memory is planned for a pass, beside what it takes: the tensors that are alive at once, as torch's profiler counts them
on a CPU and its allocator on a GPU, and by how much the process grows.

Numbers and grids are made up: none of them changes a byte.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from functools import partial
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.profiler import ProfilerActivity, profile
from torch.utils import _pytree as pytree

from benchmarks.subject import Subject
from qdexp import meter
from qdexp.config import Model
from qdexp.footprint import passes, walks
from qdexp.models.describe import describe
from qdexp.quant.blocks import Batch, Rows, call
from qdexp.quant.network import activation_quantizers, set_activation_mode
from qdexp.quant.streams import streaming

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
        yield [*compared(f"{title}, {subject.rows} rows", planned, live), f"{grown / 1e6:,.0f}"]


def compared(title: str, planned: int, live: int) -> list[str]:
    """What stands in the table of two numbers of bytes."""
    return [title, *(f"{size / 1e6:,.1f}" for size in (planned, live)), f"{planned / live:.3f}"]


def training_steps(
    kind: str, network: nn.Module, full: nn.Module, blocks: Mapping[str, Sequence[bool]], rows: Batch
) -> Iterator[int]:
    """The live bytes of a training step with all ``rows``, block by block; both networks have numbers."""
    device, size = rows[0].device, len(rows[0])
    with streaming(network, list(blocks), [rows]) as stream:
        for name, has_rows in blocks.items():
            calls, (targets,) = stream.calls, stream.advance()
            block, original = (one.get_submodule(name) for one in (network, full))
            joined = Rows(calls, has_rows, [size])
            yield live_bytes(partial(walks.step_bytes, kind, "nearest", block, original, joined, targets), device)


def learned_networks(model: Model, kind: str, device: torch.device) -> tuple[nn.Module, nn.Module]:
    """A network as it is while weights or scales are learned, and the full-precision one, both with made-up numbers."""
    meta = walks.rounded(model) if kind == walks.WEIGHTS else describe(model).network
    set_activation_mode(meta, "on")
    return filled(meta, device), filled(passes.full(model), device)


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
        work()  # what CUDA's libraries take once and for good is not its own
        before = torch.cuda.memory_allocated(device)
        torch.cuda.reset_peak_memory_stats(device)
        work()
        return torch.cuda.max_memory_allocated(device) - before
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = found.profiler.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))
