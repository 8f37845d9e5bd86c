"""A metric as a stage: what it needs in, its numbers out."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from qdexp import files
from qdexp.config import NAMES_CODE, WITHOUT_EFFECT, Config
from qdexp.entries import digest
from qdexp.errors import UserError
from qdexp.metrics.base import FEATURES, Material, Metric, NamedMetric, Result
from qdexp.stages.base import Results, Stage
from qdexp.statistics.estimate import Estimate, of_mean

FILE, IMAGES = "numbers.json", "images.safetensors"


@dataclass(frozen=True, eq=False, kw_only=True)
class MetricStage(Stage):
    """``numbers.json``: of each number its ``value`` and, where it has an interval, its jackknife ``replicates``; and
    ``images.safetensors`` where there is a value of each image, [n], in the order of the samples.

    Attributes:
        metric_name: What the config calls it.
        target: The class of the metric, which counts with its code.
        files: Those that it reads outside the store.
        needed: What it needs, by the need: stages that it reads, and plain values.
        made_with: What it measures with, beside the protocol.
    """

    metric_name: str = field(metadata=WITHOUT_EFFECT)
    target: str = field(metadata=NAMES_CODE)
    metric: Metric
    files: Mapping[str, Path]
    needed: Mapping[str, Any]
    made_with: Mapping[str, str]

    @classmethod
    def of(
        cls, config: Config, one: NamedMetric, device: torch.device, needed: Mapping[str, Any], **more: Any
    ) -> "MetricStage":
        """``more``: fields of a subclass. Raises UserError where a file is missing."""
        try:
            read, made_with = one.metric.files(config), one.metric.identity(config)
        except ValueError as error:
            raise UserError(f"{one.option}.{error}") from error
        return cls(
            device=device,
            metric_name=one.name,
            target=one.target,
            metric=one.metric,
            files=read,
            needed=needed,
            made_with=made_with,
            **more,
        )

    @property
    def name(self) -> str:
        return self.metric_name

    @property
    def quick(self) -> bool:
        return self.metric.quick

    @property
    def portable(self) -> bool:
        return self.metric.portable

    def material(self, inputs: dict[str, Path]) -> Material:
        """The material that the metric gets."""
        values = {name: value for name, value in self.needed.items() if name not in inputs}
        return Material(device=self.device, folders=inputs, values=values, files=self.files)

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        found = dict(self.metric.measure(self.material(inputs)))
        for key in found.keys() - {number.key for number in self.metric.numbers}:
            raise UserError(f"{self.target}: gives {key}, which its numbers do not declare; add it there")
        images = {key: value.detach().cpu() for key, value in found.items() if isinstance(value, Tensor)}
        if images:
            files.write_tensors(folder / IMAGES, images)
        files.write_text(folder / FILE, json.dumps({key: _told(value) for key, value in found.items()}))

    def results(self, folder: Path) -> Results:
        found = json.loads((folder / FILE).read_text())
        described = {number.key: number.described() for number in self.metric.numbers if number.key in found}
        told: dict[str, Any] = {"numbers": described}
        if self.made_with:
            told["made_with"] = dict(self.made_with)
        if FEATURES in self.inputs:
            told[FEATURES] = self.inputs[FEATURES].key
        if self.files:
            told["files"] = {role: {"path": str(path), "sha256": digest(path)} for role, path in self.files.items()}
        return {"metrics": {key: one["value"] for key, one in found.items()}, "measures": {self.name: told}}


def _told(value: Result) -> dict[str, Any]:
    if isinstance(value, Tensor):
        replicates = of_mean(value.detach().cpu().numpy()).replicates
        value = Estimate(value.detach().cpu().double().mean().item(), replicates)
    if isinstance(value, Estimate):
        return {"value": value.value, "replicates": value.replicates.tolist()}
    return {"value": float(value)}
