"""Lightning's trainers, set up for qdexp. Import this module late: Lightning takes seconds to load."""

import contextlib
import logging
import signal
import threading
import warnings
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from pytorch_lightning.plugins.environments import LightningEnvironment
from torch import nn
from torch.utils.data import DataLoader

from qdexp import progress

PRECISIONS = {"float32": "32-true", "bfloat16": "bf16-mixed"}
"""The types that the iterations of learning may compute in, and Lightning's words for them."""


def predict(
    module: nn.Module, loader: DataLoader[Any], device: torch.device, write: Callable[[int, Any], object] | None = None
) -> list[Any]:
    """Return the outputs of ``module`` for each batch, or nothing where ``write`` takes each one with the number of its
    batch."""
    with progress.bar("batches", len(loader)) as bar, _trainer(device, [_Advance(bar, write)], {}) as trainer:
        return trainer.predict(_Prediction(module), loader, return_predictions=write is None) or []


def fit(
    module: pl.LightningModule, batches: Iterable[Any], device: torch.device, callback: Callback, precision: str = "float32"
) -> None:
    """Trains ``module`` on each of ``batches`` once; in bfloat16 by autocast: its parameters stay in float32."""
    with _trainer(device, [callback], {"max_epochs": 1, "precision": PRECISIONS[precision]}) as trainer:
        trainer.fit(module, batches)


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


class _Prediction(pl.LightningModule):
    def __init__(self, module: nn.Module) -> None:
        super().__init__()
        self.module = module

    def predict_step(self, batch: Any) -> Any:
        return self.module(batch)


class _Advance(Callback):
    def __init__(self, bar: progress.Bar, write: Callable[[int, Any], object] | None) -> None:
        self._bar, self._write = bar, write

    def on_predict_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int,
                             loader: int = 0) -> None:  # fmt: skip
        if self._write is not None:
            self._write(index, outputs)
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
