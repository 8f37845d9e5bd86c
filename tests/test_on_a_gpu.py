"""What only a GPU can tell; skipped where there is none."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from benchmarks.gpu.repeated import digests_of
from qdexp.cell import Cell
from qdexp.quant import Scheme, fake_quantize, qparams_from_range
from qdexp.sampling.shards import read_shards

pytestmark = pytest.mark.gpu
CellOf = Callable[..., Cell]


def made(cell_of: CellOf, out: Path, *arguments: str) -> dict[str, str]:
    """The digests of all that a cell's stages leave, by stage and file."""
    cell = cell_of("method=qdiffusion", f"out={out}", *arguments)
    assert cell.run()["status"] == "complete"
    return digests_of(cell)


def test_a_cell_ends_with_the_same_bits_each_time(cell_of: CellOf, tmp_path: Path) -> None:
    once, again = (made(cell_of, tmp_path / name, "device=cuda") for name in ("once", "again"))
    assert once == again


def test_rows_elsewhere_change_no_bit(cell_of: CellOf, tmp_path: Path) -> None:
    found = [
        made(cell_of, tmp_path / name, "device=cuda", *options)
        for name, *options in (
            ("device",),
            ("host", "memory.device_gb=0"),
            ("files", "memory.device_gb=0", "memory.host_gb=0"),
        )
    ]
    assert found[0] == found[1] == found[2]


def test_full_precision_draws_what_the_cpu_draws(cell_of: CellOf, tmp_path: Path) -> None:
    images = []
    for device in ("cpu", "cuda"):
        cell = cell_of("method=fp", f"out={tmp_path / device}", f"device={device}")
        cell.run()
        images.append(torch.cat(list(read_shards(tmp_path / device / "store" / cell.stages["samples"].entry, "images"))))
    difference = (images[0].int() - images[1].int()).abs()
    assert difference.max() <= 2
    assert difference.float().mean() < 0.1


def test_the_kernel_of_torch_rounds_as_ours_and_keeps_nan() -> None:
    scheme = Scheme(8)
    qparams = qparams_from_range(torch.tensor([-2.7]), torch.tensor([5.1]), scheme)
    for dtype in (torch.float32, torch.float16, torch.bfloat16):
        x = torch.cat([torch.randn(10_000) * 4, torch.tensor([torch.nan])]).to(dtype)
        there = fake_quantize(x.cuda(), type(qparams)(*(one.cuda() for one in qparams)), scheme)
        assert there.dtype == dtype
        torch.testing.assert_close(there.cpu(), fake_quantize(x, qparams, scheme), rtol=0, atol=0, equal_nan=True)


def test_who_asks_what_is_free_starts_no_cuda() -> None:
    ask = "import torch; from qdexp.footprint.places import free_on_gpus; print(free_on_gpus(), torch.cuda.is_initialized())"
    free, started = subprocess.run([sys.executable, "-c", ask], capture_output=True, text=True, check=True).stdout.split()
    assert int(free) > 0 and started == "False"
