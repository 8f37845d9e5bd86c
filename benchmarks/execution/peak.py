"""What the CPU multiplies in a second at most: large matrix products."""

from collections.abc import Iterator

import torch

from benchmarks.gpu.setup import Row, Setup
from benchmarks.timing import measure
from qdexp.backends.integer.factors import Factor
from qdexp.backends.integer.kernels import Grid, Linear

SIZE, REPETITIONS = 2048, 5


@torch.inference_mode()
def rates(size: int = SIZE) -> dict[str, float]:
    """MACs a second, by the type of the factors, with the threads that torch has: by CPU time, which hardly feels what else the
    machine does."""
    x, weight = torch.randn(size, size), torch.randn(size, size)
    codes = torch.randint(0, 256, (size, size), dtype=torch.uint8)
    linear = Linear(Factor(torch.randint(-128, 128, (size, size), dtype=torch.int8), torch.ones(size), None))
    works = {"float32": lambda: torch.mm(x, weight), "int8": lambda: linear(codes, Grid(1.0, 3, 255), None)}
    found = {}
    for name, work in works.items():
        work()
        seconds = min(measure(work, torch.device("cpu")).cpu for _ in range(REPETITIONS))
        found[name] = size**3 * torch.get_num_threads() / seconds
    return found


def run(setup: Setup, threads: int) -> Iterator[Row]:
    """One row."""
    torch.set_num_threads(threads)
    found = rates(64 if setup.small else SIZE)
    told = {f"{name}, GMAC/s": f"{rate / 1e9:.4g}" for name, rate in found.items()}
    capability = torch.backends.cpu.get_cpu_capability()
    yield {"threads": threads, "CPU": capability, **told, "ratio": f"{found['int8'] / found['float32']:.3g}"}
