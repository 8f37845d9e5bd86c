"""Progress of block reconstruction: a bar on a terminal, a line now and then in a log."""

import time
from contextlib import ExitStack
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback

from qdexp import progress
from qdexp.recon.learning import Reconstruction

BAR_SECONDS, LOG_SECONDS = 0.5, 60.0


class BlockProgress(Callback):
    """Names the block, how many are done, and the relative error of the block's last batch."""

    def __init__(self, title: str, blocks: int) -> None:
        self._title, self._blocks, self._done = title, blocks, 0
        self._shown, self._open = time.monotonic(), ExitStack()

    def __enter__(self) -> "BlockProgress":
        self._bar = self._open.enter_context(progress.bar(self._title, self._blocks))
        self._every = BAR_SECONDS if self._bar.shown else LOG_SECONDS
        return self

    def __exit__(self, *_: object) -> None:
        self._open.close()

    def enter(self, block: str) -> None:
        """A block is begun."""
        self._block = block
        self._bar.update(self._done, f"{self._title}  {block}")
        self._done += 1

    def on_train_batch_end(self, trainer: pl.Trainer, module: pl.LightningModule, outputs: Any, batch: Any, index: int) -> None:
        """The error is read off the device no oftener than it is shown."""
        now = time.monotonic()
        if now - self._shown < self._every:
            return
        self._shown = now
        assert isinstance(module, Reconstruction)
        share = (index + 1) / float(trainer.num_training_batches)
        text = f"{self._title}  {self._block}  error {float(module.error):.2e}"
        self._bar.update(self._done - 1 + share, text)
        if not self._bar.shown:
            print(f"  {text}  {self._done}/{self._blocks} blocks, {share:.0%} of this one", flush=True)
