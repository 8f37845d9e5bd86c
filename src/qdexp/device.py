"""All that depends on the device: which one, and what it computes in."""

import contextlib
import importlib.util
import os
import shutil
from collections.abc import Iterator
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from qdexp.errors import UserError

_elsewhere: str | None = None


@contextlib.contextmanager
def elsewhere(device: str) -> Iterator[None]:
    """Plans for machines that have ``device`` (cpu or cuda), whatever this one has: results are only computed there."""
    global _elsewhere
    before, _elsewhere = _elsewhere, device
    try:
        yield
    finally:
        _elsewhere = before


def are_here() -> bool:
    """Whether what is planned runs on this machine."""
    return _elsewhere is None


def resolve(device: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises UserError where a named device is missing."""
    has_cuda = torch.cuda.is_available() if _elsewhere is None else _elsewhere == "cuda"
    if device == "cuda" and not has_cuda:
        where = "torch sees no CUDA device here" if _elsewhere is None else "the cluster has none (cluster.device)"
        raise UserError(f"device=cuda: {where}; set device=cpu, or auto")
    return torch.device(("cuda" if has_cuda else "cpu") if device == "auto" else device)


def visible() -> list[str]:
    """The CUDA devices of this process, as CUDA_VISIBLE_DEVICES names them: indices, or names where it is set to these."""
    count = torch.cuda.device_count()
    named = [name.strip() for name in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return (named or list(map(str, range(count))))[:count]


def make_repeatable() -> None:
    """Make results repeat bit for bit on one machine: no TF32, no autotuned algorithms. Must be called before CUDA starts."""
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # else cuBLAS may add up in any order
    os.environ.setdefault("TORCHINDUCTOR_DETERMINISTIC", "1")
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


@contextlib.contextmanager
def deterministic(what: str) -> Iterator[None]:
    """While it lasts, backward passes too add up in one order: CUDA's attention does not by itself.

    Raises:
        UserError: There is no such algorithm for an operation of ``what``.
    """
    settings: Any = torch.utils.deterministic
    before = torch.are_deterministic_algorithms_enabled(), settings.fill_uninitialized_memory
    torch.use_deterministic_algorithms(True)
    settings.fill_uninitialized_memory = False  # what is read was written
    try:
        yield
    except RuntimeError as error:
        operation, found, _ = str(error).partition(" does not have a deterministic implementation")
        if not found:
            raise
        raise UserError(f"{what} cannot be learned with the same bits each time: torch has no deterministic algorithm for "
                        f"{operation}; choose quantizer=gptq, search or linear, or device=cpu") from error  # fmt: skip
    finally:
        torch.use_deterministic_algorithms(before[0])
        settings.fill_uninitialized_memory = before[1]


def to_channels_last(network: torch.nn.Module) -> None:
    """Lays the weights of 2d convolutions out in memory with their channels last; torch's own way fails on 3d ones."""
    for value in (*network.parameters(), *network.buffers()):
        if value.ndim == 4:
            value.data = value.data.to(memory_format=torch.channels_last)


def environment(device: torch.device) -> dict[str, str]:
    """The environment that may change the bits of a result beside the options: part of every stage's key."""
    return {"device": device.type, "dtype": "float32", "torch": torch.__version__, "diffusers": _version("diffusers")}


_version = cache(version)
"""Read off the disk once a process."""


def require_arithmetic(device: torch.device, precision: str, compiled: bool) -> None:
    """Raises UserError where the device does not compute in ``precision`` itself, or lacks a compiler that an option needs.

    What other machines have is found out there.
    """
    if _elsewhere is not None:
        return
    if precision == "bfloat16" and not _has_bfloat16(device):
        raise UserError(f"recon.precision=bfloat16: this {device.type} device does not compute in it; choose float32")
    compiler = os.environ.get("CXX", "g++")
    if compiled and device.type == "cpu" and shutil.which(compiler) is None:
        raise UserError(f"recon.compile=true: there is no C++ compiler {compiler} here; install it, name another "
                        f"in the variable CXX, or set recon.compile=false")  # fmt: skip
    if compiled and device.type == "cuda" and importlib.util.find_spec("triton") is None:
        raise UserError("recon.compile=true: there is no triton here; install it, or set recon.compile=false")


def _has_bfloat16(device: torch.device) -> bool:
    """Whether bfloat16 exists in hardware: emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
