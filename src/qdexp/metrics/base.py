"""Metrics: the base class, and the material that a metric gets.

A metric measures the images of a cell, or the network that made them, once these are in the store. It is one entry of
``metric`` in the config: a class with its options. It declares what it needs, the numbers that it gives, and how each of them
is shown. Its result is kept like that of any stage, under a key of its own options, code, files and inputs: one metric more
computes that metric alone, and none is a part of what a cell is.

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
"""The beginning of the options of metrics."""

SAMPLES = "samples"
"""The images of the cell."""
FULL_PRECISION = "full_precision"
"""The images of the full-precision network from the same noise; full precision itself is compared with none."""
PROMPTS = "prompts"
"""The prompts of the images, for models with prompts."""
NETWORK = "network"
"""The checkpoint of the quantized network."""
RUNNING = "running"
"""The network as the cell runs it: through its backend, or in full precision."""
CURVES, COVERAGE, SIZE = "curves", "coverage", "size"
"""The results of the stages of these names: the first two of quantized networks, the last of full precision."""
FEATURES = "features"
"""The features of the images, for a metric that names an ``extractor``."""

Result = Estimate | Tensor | float
"""A statistic with its jackknife replicates, which give it an interval; a value of each image, [n], whose mean is the number,
with an interval too; or a plain number."""


@dataclass(frozen=True, kw_only=True)
class Material:
    """The material that a metric measures.

    Attributes:
        device: The device to compute on.
        folders: The folders of the stages that the metric needs, by the need.
        values: Further needs, such as prompts.
        files: The metric's own files, by their roles.
    """

    device: torch.device
    folders: Mapping[str, Path]
    values: Mapping[str, Any]
    files: Mapping[str, Path]

    def images(self) -> Iterator[Tensor]:
        """Yield the cell's images, uint8 [rows, c, h, w], part by part: all at once may not fit in memory."""
        return read_shards(self.folders[SAMPLES], "images")

    def pairs(self) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield both images of every noise, the cell's and that of full precision, uint8 [rows, c, h, w] each, part by part."""
        return zip(*(read_shards(self.folders[role], "images") for role in (SAMPLES, FULL_PRECISION)), strict=True)

    def prompted(self) -> Iterator[tuple[Tensor, list[str]]]:
        """Yield the cell's images, uint8 [rows, c, h, w], part by part, with the prompt of each image."""
        numbers, prompts = count(), self.values[PROMPTS]
        for images in self.images():
            yield images, [prompts[next(numbers) % len(prompts)] for _ in images]

    def features(self) -> Features:
        """Return the features of all images, by the metric's extractor."""
        return Features(**load_file(self.folders[FEATURES] / "features.safetensors"))

    def running(self) -> "Running":
        """Return the network as the cell runs it, with example inputs."""
        running: Running = self.values[RUNNING]
        return running

    def read(self, stage: str) -> Any:
        """Return the content of ``CURVES``, ``COVERAGE`` or ``SIZE``."""
        return files.read_json(self.folders[stage] / f"{stage}.json")


@dataclass(frozen=True, kw_only=True)
class Metric(ABC):
    """Base class of metrics. The options of a subclass are its fields.

    All fields are part of the key, except those marked ``WITHOUT_EFFECT``. A mistake in them is raised as ValueError by
    ``__post_init__``.

    Attributes:
        numbers: The numbers that it may give, and how they are shown.
        needs: The things that it needs. The metric is left out of cells that lack one: full precision has no pairs, an
            unconditional model no prompts.
        quick: Whether, on a cluster, it takes no job of its own: the job that ends the cell measures it.
        portable: Whether its numbers are the same on all machines of a kind.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    numbers: ClassVar[tuple[Number, ...]]
    needs: ClassVar[frozenset[str]] = frozenset({SAMPLES})
    quick: ClassVar[bool] = True
    portable: ClassVar[bool] = True

    @abstractmethod
    def measure(self, material: Material) -> Mapping[str, Result]:
        """Measure the cell.

        Args:
            material: The images, and everything else that the metric needs.

        Returns:
            The numbers by their keys; keys without a value may be left out. A statistic with jackknife replicates
            (``Estimate``) or a value per image, [n], whose mean is the number, has an interval; a float has none.
        """

    def applies(self, config: Config) -> bool:
        """Return whether the metric is measured in such a cell."""
        return True

    def needs_of(self, config: Config) -> Collection[str]:
        """Return the needs in such a cell, where they are not the same in all."""
        return self.needs

    def extractor(self, config: Config) -> Extractor | None:
        """Return the extractor of the image features that the metric needs, or None. Features are extracted once for all
        metrics that need the same."""
        return None

    def files(self, config: Config) -> dict[str, Path]:
        """Return the files outside the store that the metric reads, by their roles; their content is part of the key.

        Raises:
            qdexp.errors.UserError: A file is missing.
            ValueError: The same, about one of the metric's own options.
        """
        return {}

    def check(self, config: Config) -> None:
        """Check whether the metric can be measured in this cell. Called before any work.

        Raises:
            qdexp.errors.UserError: It cannot be measured; the message is one line that names the option and the fix.
            ValueError: The same, about one of the metric's own options.
        """
        return

    def identity(self, config: Config) -> dict[str, str]:
        """Return the things that it measures with beside the protocol: versions, digests of weights.

        They are shown with the numbers, and numbers that were measured with other things are refused in one table.
        """
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
