"""Fake quantization: torch's kernel, which CUDA takes for grids of whole tensors, our formula there, and both on the CPU.

Differences are counted in elements whose bits differ: there should be none.
"""

from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.gpu.setup import Row, Setup
from qdexp.quant.affine import QParams, fake_quantize, fused, qparams_from_range, qparams_of_rows, round_to_grid
from qdexp.quant.scheme import PerChannel, Scheme

DTYPES = (torch.float32, torch.float16, torch.bfloat16)
BITS = (4, 8)
COUNT = 2**20
ROWS = 64


def run(setup: Setup) -> Iterator[Row]:
    """A row for each kind of grid, number of bits and type."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(COUNT, generator=generator) * 2
    rows = x.view(ROWS, -1)
    for bits in BITS:
        scheme, by_channel = Scheme(bits), Scheme(bits, PerChannel(0))
        whole = qparams_from_range(torch.tensor([-1.3]), torch.tensor([2.1]), scheme)
        halves = (torch.arange(-600, 600) + 0.5) * whole.scale  # between two levels
        far = torch.tensor([torch.nan, torch.inf, -torch.inf, 1e30, -1e30])
        for dtype in DTYPES:
            yield _row(setup, "tensor", scheme, whole, torch.cat([x, halves, far]).to(dtype))
        yield _row(setup, "row, dynamic", scheme, None, rows)
        yield _row(setup, "channel", by_channel, qparams_from_range(*rows.aminmax(dim=1), by_channel), rows)


def _row(setup: Setup, grid: str, scheme: Scheme, qparams: QParams | None, x: Tensor) -> Row:
    own = qparams_of_rows(x, scheme) if qparams is None else qparams
    there, x_there = QParams(*(value.to(setup.device) for value in own)), x.to(setup.device)
    if qparams is None:
        there = qparams_of_rows(x_there, scheme)
    found = fake_quantize(x_there, there, scheme)
    kernel: int | str = "-"
    if len(own.scale) == 1:
        formula = round_to_grid(x_there, *there, scheme).to(x.dtype)
        kernel = differing(fused(x_there, there, scheme), formula)
    return {
        "a grid for each": grid,
        "bits": scheme.bits,
        "type": str(x.dtype).removeprefix("torch."),
        "elements": x.numel(),
        "differ from the CPU's": differing(found.cpu(), fake_quantize(x, own, scheme)),
        "kernel differs from formula": kernel,
        "NaN lost": int((x.isnan() & ~found.cpu().isnan()).sum()),
    }


def differing(one: Tensor, other: Tensor) -> int:
    """The elements that are not the same number, NaN being one; of another type all."""
    if one.dtype != other.dtype:
        return one.numel()
    return int(((one != other) & ~(one.isnan() & other.isnan())).sum())
