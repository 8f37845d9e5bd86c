"""The source of an export: the network of a cell or a checkpoint, its example inputs, and its origin."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp import provenance
from qdexp.errors import UserError
from qdexp.models import checkpoint
from qdexp.models.conditions import example_condition
from qdexp.quant.blocks import Batch
from qdexp.record import Record
from qdexp.report import lookup

STEPS = 1000
"""Timesteps of a network whose noise schedule nobody tells."""
_OF_RECORD = ("cell", "axes", "identity", "keys", "config", "provenance")


@dataclass(frozen=True)
class Source:
    """A checkpoint; ``record``: of the cell that it was named by."""

    folder: Path
    record: Record | None
    trust: Collection[str] = ()

    @classmethod
    def of(cls, given: str, out: Path, trust: Collection[str]) -> "Source":
        """Find what a user names, as ``qdexp.load`` does. Raises UserError where there is none."""
        folder, record = lookup.find(given, out)
        if record is not None and not {"shape", "network"} <= dict(record["config"].get("model") or {}).keys():
            raise UserError(f"{record['cell']}: its record does not tell its model; name the folder of its checkpoint")
        return cls(folder, record, trust)

    @property
    def name(self) -> str:
        """The name of the exported file."""
        folder = self.folder.absolute()
        return str(self.record["cell"]) if self.record else (folder.parent if folder.name == checkpoint.FOLDER else folder).name

    @cached_property
    def network(self) -> nn.Module:
        """Simulated, on the CPU."""
        return checkpoint.load(self.folder, self.trust)

    def batch(self, rows: int) -> Batch:
        """Noise, timesteps over the whole trajectory in float32, and conditions of which only the shapes mean something.

        Raises:
            qdexp.errors.UserError: Nobody says which shapes these have.
        """
        generator = torch.Generator().manual_seed(0)

        def drawn(like: Tensor) -> Tensor:
            return torch.randn(like.shape, generator=generator) if like.is_floating_point() else like

        x_t = torch.randn(rows, *self._shape, generator=generator)
        t = torch.linspace(0, self._model.get("schedule", {}).get("num_train_timesteps", STEPS) - 1, rows)
        named = example_condition(self.network, rows, self._model.get("example"))
        if not named and self._model.get("condition") is not None:
            raise UserError(
                f"{self.name}: nobody tells the shapes of its network's conditions; give model.example, and run it again"
            )
        return x_t, t, pytree.tree_map(drawn, named)

    @property
    def metadata(self) -> dict[str, str]:
        """The origin of the network as JSON: the cell by its record, and this process."""
        content = checkpoint.metadata(self.folder)
        told: dict[str, Any] = {name: self.record[name] for name in _OF_RECORD if name in self.record} if self.record else {}
        told |= {"architecture": content["architecture"], "checkpoint": content["digest"]}
        told |= {"exported": provenance.collect(torch.device("cpu"))}
        return {f"qdexp.{name}": value if isinstance(value, str) else json.dumps(value) for name, value in told.items()}

    @property
    def _model(self) -> Mapping[str, Any]:
        model: Mapping[str, Any] = self.record["config"]["model"] if self.record else {}
        return model

    @property
    def _shape(self) -> list[int]:
        """The shape of x_t."""
        if self.record is not None:
            return list(self._model["shape"])
        config: Any = getattr(self.network, "config", {})
        channels, size = (config.get(name) for name in ("in_channels", "sample_size"))
        sizes = [size, size] if isinstance(size, int) else size
        if not isinstance(channels, int) or not isinstance(sizes, list | tuple):
            raise UserError(f"{self.folder}: does not say which shape its network's x_t has; name the cell, or its record")
        return [channels, *sizes]
