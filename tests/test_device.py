import logging
import signal
import time
import warnings
from pathlib import Path
from typing import Any, ClassVar

import diffusers
import pytest
import pytorch_lightning as pl
import torch
from pytorch_lightning.callbacks import BasePredictionWriter, Callback
from torch import Tensor, nn
from torch.utils.data import DataLoader

from qdexp import device as devices
from qdexp import meter
from qdexp.errors import UserError

CPU = torch.device("cpu")
with_cuda = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs CUDA")
without_cuda = pytest.mark.skipif(torch.cuda.is_available(), reason="needs a machine without CUDA")


class Doubling(pl.LightningModule):
    def predict_step(self, number: Tensor) -> Tensor:
        assert torch.is_inference_mode_enabled()
        return 2 * number.to(self.device)


class Collecting(BasePredictionWriter):
    def __init__(self) -> None:
        super().__init__(write_interval="batch")
        self.seen: list[int] = []

    def write_on_batch_end(self, trainer: Any, module: Any, prediction: Tensor, *_: Any) -> None:
        self.seen.append(int(prediction))


def numbers() -> DataLoader[Any]:
    return DataLoader(torch.arange(4), batch_size=None)  # type: ignore[arg-type]


def test_names_of_devices() -> None:
    assert devices.resolve("cpu") == CPU
    assert devices.resolve("auto").type == ("cuda" if torch.cuda.is_available() else "cpu")


@without_cuda
def test_cuda_where_there_is_none() -> None:
    with pytest.raises(UserError, match=r"^device=cuda: torch sees no CUDA device here; set device=cpu, or auto$"):
        devices.resolve("cuda")


@with_cuda
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


def test_predictions_are_returned_or_written() -> None:
    assert [int(value) for value in devices.predict(Doubling(), numbers(), CPU)] == [0, 2, 4, 6]
    writer = Collecting()
    assert devices.predict(Doubling(), numbers(), CPU, writer) == []
    assert writer.seen == [0, 2, 4, 6]


def test_prediction_in_a_slurm_job_stays_in_this_process(monkeypatch: pytest.MonkeyPatch) -> None:
    job = {"SLURM_NTASKS": "4", "SLURM_JOB_ID": "7", "SLURM_JOB_NAME": "sweep", "SLURM_PROCID": "2", "SLURM_LOCALID": "2",
           "SLURM_NODEID": "0", "SLURM_NODELIST": "node[1-2]", "SLURM_NTASKS_PER_NODE": "4"}  # fmt: skip
    for name, value in job.items():
        monkeypatch.setenv(name, value)
    handlers = []

    class Listening(Doubling):
        def predict_step(self, number: Tensor) -> Tensor:
            handlers.append(signal.getsignal(signal.SIGUSR1))
            return super().predict_step(number)

    before = signal.getsignal(signal.SIGUSR1)
    assert [int(value) for value in devices.predict(Listening(), numbers(), CPU)] == [0, 2, 4, 6]
    assert handlers == [before] * 4  # Lightning's own requeue would answer this signal


def test_prediction_is_quiet_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    logger = logging.getLogger("pytorch_lightning")
    level, filters = logger.level, list(warnings.filters)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        devices.predict(Doubling(), numbers(), CPU, Collecting())
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert (logger.level, list(warnings.filters)) == (level, filters)


def test_an_error_is_raised_as_it_is_and_the_logger_speaks_again() -> None:
    class Failing(Doubling):
        def predict_step(self, number: Tensor) -> Tensor:
            raise UserError("quant.layers: no such layer")

    level = logging.getLogger("pytorch_lightning").level
    with pytest.raises(UserError, match=r"quant\.layers"):
        devices.predict(Failing(), numbers(), CPU)
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
    devices.fit(module, numbers(), CPU, Counting())
    assert module.seen == [(0, 0), (1, 1), (2, 2), (3, 3)]
    assert Counting.ends == [0, 1, 2, 3]
    assert module.x.item() == 0.5


@pytest.mark.parametrize("stop", [UserError, KeyboardInterrupt])
def test_what_stops_training_is_raised_as_it_is(stop: type[BaseException], capfd: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("pytorch_lightning")
    level = logger.level
    with pytest.raises(stop):
        devices.fit(Descending(stop), numbers(), CPU, Callback())
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

        def predict_step(self, number: Tensor) -> Tensor:
            signal.raise_signal(signal.SIGTERM)
            return number

    def end(*_: object) -> None:
        raise TerminatedError

    before = signal.signal(signal.SIGTERM, end)
    try:
        with pytest.raises(TerminatedError):
            devices.fit(Ending(), numbers(), CPU, Callback()) if work == "fit" else devices.predict(Ending(), numbers(), CPU)
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
        devices.fit(module, numbers(), CPU, Callback())
    assert [str(warning.message) for warning in caught] == []
    assert capfd.readouterr() == ("", "")
    assert list(tmp_path.iterdir()) == []
    assert [signal.getsignal(number) for number in (signal.SIGTERM, signal.SIGINT, signal.SIGUSR1)] == handlers


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
