"""The result of reconstruction for each block, as a file beside the checkpoint."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from qdexp import files

FILE = "blocks.json"
SHOWN = 3
"""Names in the line that a person sees; the file has them all."""


@dataclass(frozen=True)
class BlockErrors:
    """The relative squared error of a block's output on the held-out rows: `before`, and as `learned`.

    Where `learned` is not below `before`, the block stays as it was; so it does where `learned` is not finite.
    """

    block: str
    before: float
    learned: float

    @property
    def kept(self) -> bool:
        """Whether what was learned is used."""
        return self.learned < self.before


def read(folder: Path) -> dict[str, Any] | None:
    """The columns that ``write`` wrote; None where nothing was learned."""
    path = folder / FILE
    return json.loads(path.read_text()) if path.exists() else None


def write(folder: Path, title: str, results: Sequence[BlockErrors]) -> None:
    """Writes `blocks.json`, one list a column, and says which blocks learning did not make better."""
    stayed = [each.block for each in results if not each.kept]
    if stayed:
        named = ", ".join(stayed[:SHOWN]) + (", ..." if len(stayed) > SHOWN else "")
        print(f"  {title}: no gain in {len(stayed)} of {len(results)} blocks, which stay as they were: {named}")
    columns = {name: [getattr(each, name) for each in results] for name in ("block", "before", "learned", "kept")}
    columns["learned"] = [error if math.isfinite(error) else None for error in columns["learned"]]  # JSON knows no NaN
    files.write_text(folder / FILE, json.dumps(columns))
