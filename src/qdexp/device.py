"""All that depends on the device: which one, how Lightning is told."""

import contextlib
import importlib.util
import logging
import os
import shutil
import signal
import threading
import warnings
from collections.abc import Iterator
from typing import Any

import diffusers
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch.utils.data import DataLoader

from qdexp import progress
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


def resolve(device: str) -> torch.device:
    """``auto`` is CUDA where there is one. Raises UserError where a named device is missing."""
    has_cuda = torch.cuda.is_available() if _elsewhere is None else _elsewhere == "cuda"
    if device == "cuda" and not has_cuda:
        where = "torch sees no CUDA device here" if _elsewhere is None else "the cluster has none (cluster.device)"
        raise UserError(f"device=cuda: {where}; set device=cpu, or auto")
    return torch.device(("cuda" if has_cuda else "cpu") if device == "auto" else device)


def make_repeatable() -> None:
    """The same bits on every run of one machine: no TF32, no autotuned algorithms."""
    torch.backends.cuda.matmul.allow_tf32 = False
    torch.backends.cudnn.allow_tf32 = False
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True


def environment(device: torch.device) -> dict[str, str]:
    """What may change the bits of a result beside the options: part of every stage's key."""
    return {"device": device.type, "dtype": "float32", "torch": torch.__version__, "diffusers": diffusers.__version__}


PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
"""What the iterations of learning may compute in, and Lightning's word for it."""


def require_arithmetic(device: torch.device, precision: str, compiled: bool) -> None:
    """Raises UserError where the device does not compute in ``precision`` itself, or lacks a compiler that is asked for.

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
    """In hardware: emulated it is slower than float32."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()


def predict(
    module: pl.LightningModule, loader: DataLoader[Any], device: torch.device, writer: Callback | None = None
) -> list[Any]:
    """What ``module`` predicts for each batch, or nothing where ``writer`` takes it."""
    with progress.bar("batches", len(loader)) as bar:
        callbacks = [*([] if writer is None else [writer]), _Advance(bar)]
        with _trainer(device, callbacks, {}) as trainer:
            return trainer.predict(module, loader, return_predictions=writer is None) or []


def fit(
    module: pl.LightningModule, loader: DataLoader[Any], device: torch.device, callback: Callback, precision: str = "float32"
) -> None:
    """Trains ``module`` on every batch of ``loader`` once; in bfloat16 by autocast: its parameters stay in float32."""
    with _trainer(device, [callback], {"max_epochs": 1, "precision": PRECISIONS[precision]}) as trainer:
        trainer.fit(module, loader)


@contextlib.contextmanager
def _trainer(device: torch.device, callbacks: list[Callback], options: dict[str, Any]) -> Iterator[pl.Trainer]:
    """Lightning in one process on one device, whatever the job around it looks like; it writes no files of its own, and says
    nothing."""
    with _quiet():
        try:
            yield pl.Trainer(
                accelerator=device.type,
                devices=1,
                plugins=[LightningEnvironment()],  # not SLURM's: its signals are not ours to handle
                callbacks=[*callbacks, _OwnSignals()],
                logger=False,
                enable_checkpointing=False,
                enable_model_summary=False,
                enable_progress_bar=False,  # there may be bars of ours
                **options,
            )
        except SystemExit as stop:  # Lightning's answer to Ctrl-C, which is ours to give
            raise stop.__context__ or stop from None


class _Advance(Callback):
    def __init__(self, bar: progress.Bar) -> None:
        self._bar = bar

    def on_predict_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int,
                             loader: int = 0) -> None:  # fmt: skip
        self._bar.update(index + 1)


class _OwnSignals(Callback):
    """Leaves SIGTERM to whom it belongs: Lightning would end the process with status 0, or, while it predicts, not at all."""

    def __init__(self) -> None:
        self._handler = signal.getsignal(signal.SIGTERM)

    def on_train_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._restore()

    def on_predict_start(self, trainer: pl.Trainer, module: pl.LightningModule) -> None:
        self._restore()

    def _restore(self) -> None:
        if threading.current_thread() is threading.main_thread():
            signal.signal(signal.SIGTERM, self._handler)


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Silences the trainer's remarks on devices and worker processes."""
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            for module in ("pytorch_lightning", "lightning_fabric"):  # the latter where Slurm is installed
                warnings.filterwarnings("ignore", module=module)
            yield
    finally:
        logger.setLevel(level)
