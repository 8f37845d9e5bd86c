"""The cost of the full-precision network."""

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qdexp import device as devices
from qdexp import files, models
from qdexp.config import UNTOUCHED, Config, Model
from qdexp.models.checkpoint import nominal_bytes
from qdexp.models.describe import description_of
from qdexp.stages.base import Stage

FILE = "size.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class SizeStage(Stage):
    """``size.json``: ``size_stored_mb``, ``size_nominal_mb`` and, where it can be counted by shapes alone, ``gbops``."""

    name = "size"
    quick = True

    model: Model
    files: Mapping[str, Path]

    @classmethod
    def of(cls, config: Config) -> "SizeStage":
        return cls(device=devices.resolve(config.device), model=config.model.bare, files=models.files(config.model))

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        description = description_of(self.model)
        found = {
            "size_stored_mb": models.stored_bytes(self.model) / 1e6,
            "size_nominal_mb": nominal_bytes(models.parameters(self.model), UNTOUCHED) / 1e6,
            **({} if description is None else {"gbops": description.macs * UNTOUCHED**2 / 1e9}),
        }
        files.write_text(folder / FILE, json.dumps(found))
