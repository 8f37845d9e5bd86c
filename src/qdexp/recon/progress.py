"""What a person sees while blocks are reconstructed: a bar on a terminal, a line now and then in a log."""

import sys
import time
from typing import Any

import pytorch_lightning as pl
from pytorch_lightning.callbacks import Callback
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from qdexp.recon.learning import Reconstruction

BAR_SECONDS, LOG_SECONDS = 0.5, 60.0


class BlockProgress(Callback):
    """Names the block, how many are done, and the relative error of the block's last batch."""

    def __init__(self, title: str, blocks: int) -> None:
        terminal = sys.stderr.isatty()
        self._every = BAR_SECONDS if terminal else LOG_SECONDS
        self._shown = time.monotonic()
        columns = (TextColumn("  {task.description}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=Console(stderr=True), disable=not terminal, transient=True)
        self._title, self._blocks, self._done = title, blocks, 0
        self._task = self._bar.add_task(title, total=blocks)

    def __enter__(self) -> "BlockProgress":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def enter(self, block: str) -> None:
        """A block is begun."""
        self._block = block
        self._bar.update(self._task, completed=self._done, description=f"{self._title}  {block}")
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
        self._bar.update(self._task, completed=self._done - 1 + share, description=text)
        if self._bar.disable:
            print(f"  {text}  {self._done}/{self._blocks} blocks, {share:.0%} of this one", flush=True)
