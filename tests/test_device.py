import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor

from qdexp import device as devices
from qdexp import meter
from qdexp.errors import UserError

CPU = torch.device("cpu")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


def test_names_of_devices() -> None:
    assert devices.resolve("cpu") == CPU
    assert devices.resolve("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@without_cuda
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(UserError, match=r"^device=cuda: torch sees no CUDA device here; set device=cpu, or auto$"):
        devices.resolve("cuda")


@pytest.mark.gpu
def test_cuda_where_there_is_one() -> None:
    assert devices.resolve("cuda").type == "cuda"


def test_arithmetic_that_the_device_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    with pytest.raises(UserError, match=r"^recon\.compile=true: there is no C\+\+ compiler no-such-compiler here; .*false$"):
        devices.require_arithmetic(CPU, "float32", compiled=True)
    devices.require_arithmetic(CPU, "float32", compiled=False)
    for extension in ("_is_avx512_bf16_supported", "_is_amx_tile_supported"):
        monkeypatch.setattr(torch.cpu, extension, lambda: False)
    with pytest.raises(UserError, match=r"^recon\.precision=bfloat16: this cpu device does not compute in it; choose float32$"):
        devices.require_arithmetic(CPU, "bfloat16", compiled=False)
    with devices.elsewhere("cpu"):
        devices.require_arithmetic(CPU, "bfloat16", compiled=True)


def test_the_environment_of_a_key() -> None:
    versions = {"torch": torch.__version__, "diffusers": diffusers.__version__}
    assert devices.environment(CPU) == {"device": "cpu", "dtype": "float32"} | versions
    assert devices.environment(torch.device("cuda", 1)) == {"device": "cuda", "dtype": "float32"} | versions


def test_seconds() -> None:
    costs = meter.measure(CPU, lambda: time.sleep(0.05))
    assert 0.05 <= costs["seconds"] < 1


@pytest.mark.skipif(not Path("/proc/self/clear_refs").exists(), reason="needs Linux")
def test_peak_memory_is_that_of_the_work_alone() -> None:
    def idle() -> None:
        pass

    def take(mib: int) -> None:
        torch.ones(mib * 2**18).add_(1)

    before = meter.measure(CPU, idle)["peak_memory_mb"]
    large = meter.measure(CPU, lambda: take(256))["peak_memory_mb"]
    after = meter.measure(CPU, idle)["peak_memory_mb"]
    assert large - before == pytest.approx(256, abs=40)
    assert after == pytest.approx(before, abs=40)


class Scattered(torch.autograd.Function):
    """Its backward pass writes to places in any order."""

    @staticmethod
    def forward(ctx: Any, x: Tensor) -> Tensor:
        return x.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> Tensor:
        return gradients[0].clone().put_(torch.tensor([0, 0]), torch.ones(2))


def test_learning_in_any_order_is_refused_and_ends_with_the_context() -> None:
    x = torch.zeros(2, requires_grad=True)
    refused = pytest.raises(UserError, match=r"^block a cannot be learned .* algorithm for put_.*; choose .*device=cpu$")
    with refused, devices.deterministic("block a"):
        Scattered.apply(x).sum().backward()
    with pytest.raises(RuntimeError, match="another"), devices.deterministic("block a"):
        raise RuntimeError("another")
    Scattered.apply(x).sum().backward()


def test_what_must_be_set_before_cuda_starts() -> None:
    script = "import os; from qdexp import device; device.make_repeatable(); print(os.environ['CUBLAS_WORKSPACE_CONFIG'])"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == ":4096:8\n"
