"""What a metric is, and what it gets.

A metric measures the images of a cell, or what made them, once these are in the store. It is one entry of ``metric`` in the
config: a class with its options. It declares what it needs, the numbers that it gives, and how each of them is shown. What it
finds is kept like the result of any stage, under a key of its own options, code, files and inputs: one metric more computes
that metric alone, and none is a part of what a cell is.

A metric of your own is a frozen dataclass that extends ``Metric``, in a file on the Python path; its fields are its options.
"""

from abc import ABC, abstractmethod
from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

import torch
from safetensors.torch import load_file
from torch import Tensor

from qdexp import files
from qdexp.config import Config, Model
from qdexp.config.checks import STRICT
from qdexp.metrics.extractor import Extractor
from qdexp.metrics.features import Features
from qdexp.numbers import Number
from qdexp.sampling.shards import read_shards
from qdexp.statistics.estimate import Estimate

if TYPE_CHECKING:  # networks are behind it, and images are measured without
    from qdexp.metrics.running import Running

OPTION = "metric"
"""What the options of metrics begin with."""

SAMPLES = "samples"
"""The images of the cell."""
FULL_PRECISION = "full_precision"
"""Those of the full-precision network from the same noise; full precision itself is compared with none."""
PROMPTS = "prompts"
"""What the images were asked for, of models that are asked in words."""
NETWORK = "network"
"""The checkpoint of the quantized network."""
RUNNING = "running"
"""The network as the cell runs it: through its backend, or in full precision."""
CURVES, COVERAGE, SIZE = "curves", "coverage", "size"
"""What the stages of these names measure: the first two of quantized networks, the last of full precision."""
FEATURES = "features"
"""Of the images: what a metric gets that names an ``extractor``, beside its needs."""

Result = Estimate | Tensor | float
"""A statistic with its jackknife replicates, which give it an interval; a value of each image, [n], whose mean is the number,
with an interval too; or a plain number."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """What a metric measures.

    Attributes:
        device: Where to compute.
        folders: Those of the stages that the metric needs, by the need.
        values: What it needs beside.
        files: Its own, by their roles.
    """

    device: torch.device
    folders: Mapping[str, Path]
    values: Mapping[str, Any]
    files: Mapping[str, Path]

    def images(self) -> Iterator[Tensor]:
        """The cell's images, uint8 [rows, c, h, w], part by part: all at once may not fit in memory."""
        return read_shards(self.folders[SAMPLES], "images")

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Both images of every noise, the cell's and that of full precision, likewise."""
        return zip(*(read_shards(self.folders[role], "images") for role in (SAMPLES, FULL_PRECISION)), strict=True)

    def prompted(self) -> Iterator[tuple[Tensor, list[str]]]:
        """The cell's images, likewise, with the prompt of each."""
        numbers, prompts = count(), self.values[PROMPTS]
        for images in self.images():
            yield images, [prompts[next(numbers) % len(prompts)] for _ in images]

    def features(self) -> Features:
        """Of all images, by the metric's extractor."""
        return Features(**load_file(self.folders[FEATURES] / "features.safetensors"))

    def running(self) -> "Running":
        """The network, and what it can be called with."""
        running: Running = self.values[RUNNING]
        return running

    def read(self, stage: str) -> Any:
        """What ``CURVES``, ``COVERAGE`` or ``SIZE`` holds."""
        return files.read_json(self.folders[stage] / f"{stage}.json")


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """One metric. The options of a subclass are its fields: all are part of the key, but for those marked ``WITHOUT_EFFECT``. A
    mistake in them is raised as ValueError by ``__post_init__``.

    Attributes:
        numbers: Those that it may give, and how they are shown.
        needs: What it needs. It is left out of a cell that has not all of it: full precision has no pairs, an unconditional
            model no prompts.
        quick: Whether, on a cluster, it takes no job of its own: the one that ends the cell makes it.
        portable: Whether its numbers are the same whichever machine of a kind measures them.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    numbers: ClassVar[tuple[Number, ...]]
    needs: ClassVar[frozenset[str]] = frozenset({SAMPLES})
    quick: ClassVar[bool] = True
    portable: ClassVar[bool] = True

    @abstractmethod
    def measure(self, material: Material) -> Mapping[str, Result]:
        """Its numbers, by their keys; those may be left out that there are none of."""

    def applies(self, config: Config) -> bool:
        """Whether it is measured in such a cell."""
        return True

    def needs_of(self, config: Config) -> Collection[str]:
        """What it needs in such a cell, where that is not the same in all."""
        return self.needs

    def extractor(self, config: Config) -> Extractor | None:
        """Whose features of the images it needs. They are extracted once for all metrics that need the same."""
        return None

    def files(self, config: Config) -> dict[str, Path]:
        """The files outside the store that it reads, by their roles. Raises UserError or ValueError where one is missing."""
        return {}

    def check(self, config: Config) -> None:
        """Raises UserError or ValueError for what it cannot do in this cell: called before any work."""
        return

    def identity(self, config: Config) -> dict[str, str]:
        """What it measures with, beside the protocol: versions, digests of weights. It is said with the numbers, and numbers
        that were measured with other things are refused in one table."""
        return {}


@dataclass(frozen=True)
class NamedMetric:
    """A metric under its name in the config; ``target``: the ``_target_`` that it was made from."""

    name: str
    target: str
    metric: Metric

    @property
    def option(self) -> str:
        return f"{OPTION}.{self.name}"


def image_shape(model: Model) -> list[int]:
    """[c, h, w] of the images; [c] alone where the size is not known before a first stage decodes."""
    return model.shape if model.first_stage is None else [model.first_stage.network.get("out_channels", 3)]
