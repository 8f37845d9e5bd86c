import logging
import signal
import warnings
from pathlib import Path
from typing import Any, ClassVar

import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qdexp import lightning
from qdexp.errors import UserError

CPU = torch.device("cpu")


class Doubling(nn.Module):
    def forward(self, number: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return 2 * number


def numbers() -> DataLoader[Any]:
    return DataLoader(torch.arange(4), batch_size=None)  # type: ignore[arg-type]


def test_predictions_are_returned_or_written() -> None:
    assert [int(value) for value in lightning.predict(Doubling(), numbers(), CPU)] == [0, 2, 4, 6]
    seen: list[tuple[int, int]] = []
    assert lightning.predict(Doubling(), numbers(), CPU, lambda index, value: seen.append((index, int(value)))) == []
    assert seen == [(0, 0), (1, 2), (2, 4), (3, 6)]


def test_prediction_in_a_slurm_job_stays_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "sweep", "SLURM_PROCID": "2", "SLURM_LOCALID": "2",
           "SLURM_NODEID": "0", "SLURM_NODELIST": "node[1-2]", "SLURM_NTASKS_PER_NODE": "4"}  # fmt: skip
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    handlers = []

    class Listening(Doubling):
        def forward(self, number: Tensor) -> Tensor:
            handlers.append(signal.getsignal(signal.SIGUSR1))
            return super().forward(number)

    before = signal.getsignal(signal.SIGUSR1)
    assert [int(value) for value in lightning.predict(Listening(), numbers(), CPU)] == [0, 2, 4, 6]
    assert handlers == [before] * 4  # Lightning's own requeue would answer this signal


def test_prediction_is_quiet_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("pytorch_lightning")
    level, filters = logger.level, list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lightning.predict(Doubling(), numbers(), CPU, lambda *_: None)
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert (logger.level, list(warnings.filters)) == (level, filters)


def test_an_error_is_raised_as_it_is_and_the_logger_speaks_again() -> None:
    class Failing(Doubling):
        def forward(self, number: Tensor) -> Tensor:
            raise UserError("quant.layers: no such layer")

    level = logging.getLogger("pytorch_lightning").level
    with pytest.raises(UserError, match=r"quant\.layers"):
        lightning.predict(Failing(), numbers(), CPU)
    assert logging.getLogger("pytorch_lightning").level == level


class Descending(pl.LightningModule):
    """Walks down x^2 / 2 by the shares that it is given."""

    def __init__(self, stop: type[BaseException] | None = None) -> None:
        super().__init__()
        self.x, self.stop, self.seen = nn.Parameter(torch.tensor(8.0)), stop, list[tuple[int, int]]()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.5)

    def training_step(self, number: Tensor, index: int) -> Tensor:
        self.seen.append((int(number), index))
        if self.stop and index == 2:
            raise self.stop
        return self.x**2 / 2


def test_training_takes_every_batch_once_in_order() -> None:
    class Counting(Callback):
        ends: ClassVar[list[int]] = []

        def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, index: int) -> None:
            self.ends.append(index)

    module = Descending()
    lightning.fit(module, numbers(), CPU, Counting())
    assert module.seen == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert Counting.ends == [0, 1, 2, 3]
    assert module.x.item() == 0.5


@pytest.mark.parametrize("stop", [UserError, KeyboardInterrupt])
def test_what_stops_training_is_raised_as_it_is(stop: type[BaseException], capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    with pytest.raises(stop):
        lightning.fit(Descending(stop), numbers(), CPU, Callback())
    assert logger.level == level
    assert capfd.readouterr() == ("", "")


class TerminatedError(Exception):
    pass


@pytest.mark.parametrize("work", ["fit", "predict"])
def test_sigterm_goes_to_whom_it_belongs(work: str) -> None:
    class Ending(Descending):
        def training_step(self, number: Tensor, index: int) -> Tensor:
            signal.raise_signal(signal.SIGTERM)
            return super().training_step(number, index)

        def forward(self, number: Tensor) -> Tensor:
            signal.raise_signal(signal.SIGTERM)
            return number

    def end(*_: object) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(TerminatedError):
            lightning.fit(Ending(), numbers(), CPU, Callback()) if work == "fit" else lightning.predict(
                Ending(), numbers(), CPU
            )
        assert signal.getsignal(signal.SIGTERM) is end
    finally:
        signal.signal(signal.SIGTERM, before)


def test_training_is_quiet_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    module, handlers = Descending(), [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)]
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        lightning.fit(module, numbers(), CPU, Callback())
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers
