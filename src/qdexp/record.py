"""The record: one JSON file a cell, the only input of tables, pages and W&B. README, "The record", documents the format."""

import json
import math
from pathlib import Path
from typing import Any

from qdexp import files

FORMAT = 1
Record = dict[str, Any]


def folder(out: Path) -> Path:
    return out / "records"


def path(out: Path, cell: str) -> Path:
    return folder(out) / f"{cell}.json"


def write(out: Path, record: Record) -> Path:
    """Writes the record whole, in place of an older one of the same cell."""
    folder(out).mkdir(parents=True, exist_ok=True)
    target = path(out, record["cell"])
    files.write_text(target, json.dumps(_finite(record), indent=1, allow_nan=False))
    return target


def _finite(value: Any) -> Any:
    """null in place of NaN and infinity, which JSON has not: a network that is quantized to pieces still gets its record."""
    if isinstance(value, dict):
        return {key: _finite(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_finite(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(out: Path, cell: str) -> Record | None:
    """The cell's record if it is there, whole and of this format."""
    try:
        record: Record = files.read_json(path(out, cell))
    except (OSError, ValueError):
        return None
    return record if record.get("format") == FORMAT else None


def read_complete(out: Path, cell: str) -> Record | None:
    """The same, if it says that the cell succeeded."""
    record = read(out, cell)
    return record if record is not None and record.get("status") == "complete" else None
