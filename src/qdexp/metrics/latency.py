"""Latency: the time of one forward pass of the network as the cell runs it, through its backend or in full precision.

One pass is one call of the network: with classifier-free guidance a step of the sampler takes two, and a whole image as many as
the sampler has calls, the first stage and text encoders aside. The clock runs between two points at which the device has
finished all that it was given. Each number is the median of the passes that are timed, after others that warm caches, kernels
and compilers up; beside it stands the interquartile range, which a machine that does other things at the time makes wide.
"""

import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
import torch
from annotated_types import Ge

from qdexp import device as devices
from qdexp import machine
from qdexp.config import Config
from qdexp.metrics.base import RUNNING, Material, Metric, Result
from qdexp.numbers import Number


@dataclass(frozen=True, kw_only=True)
class Latency(Metric):
    """Milliseconds of one forward pass of one image and of ``sampling.batch`` of them.

    ``warmup``: passes before those that are timed; ``repetitions``: of these.
    """

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "latency_ms",
            "ms, one image",
            kind="cost",
            digits=3,
            significant=True,
            axis="ms of a forward pass, one image",
            meaning="Median time of one forward pass of one image, on the machine that measured it.",
        ),
        Number(
            "latency_iqr_ms",
            "ms, one image, IQR",
            kind="cost",
            shown=(),
            digits=3,
            significant=True,
            meaning="Interquartile range of the times of one image: wide where the machine did other things.",
        ),
        Number(
            "latency_batch_ms",
            "ms, a batch",
            kind="cost",
            digits=3,
            significant=True,
            axis="ms of a forward pass, a batch",
            meaning="Median time of one forward pass of sampling.batch images, on the machine that measured it.",
        ),
        Number(
            "latency_batch_iqr_ms",
            "ms, a batch, IQR",
            kind="cost",
            shown=(),
            digits=3,
            significant=True,
            meaning="Interquartile range of the times of a batch: wide where the machine did other things.",
        ),
    )
    needs: ClassVar[frozenset[str]] = frozenset({RUNNING})
    portable: ClassVar[bool] = False

    warmup: Annotated[int, Ge(1)] = 3
    repetitions: Annotated[int, Ge(5)] = 20

    def identity(self, config: Config) -> dict[str, str]:
        return {"machine": machine.line(devices.resolve(config.device)), "batch": f"{config.sampling.batch}"}

    def measure(self, material: Material) -> dict[str, Result]:
        running, found = material.running(), dict[str, Result]()
        for name, rows in (("latency", 1), ("latency_batch", running.batch)):
            call = running.forward(rows)
            times = [1000 * seconds(call, material.device) for _ in range(self.warmup + self.repetitions)][self.warmup :]
            low, median, high = np.quantile(times, (0.25, 0.5, 0.75))
            found |= {f"{name}_ms": float(median), f"{name}_iqr_ms": float(high - low)}
        return found


def seconds(work: Callable[[], object], device: torch.device) -> float:
    """The seconds of ``work`` between two points at which ``device`` has nothing left to do."""
    if device.type != "cuda":
        start = time.perf_counter()
        work()
        return time.perf_counter() - start
    with torch.cuda.device(device):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        begin.record()
        work()
        end.record()
        torch.cuda.synchronize()
        return begin.elapsed_time(end) / 1000
