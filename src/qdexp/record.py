"""The record: one JSON file per cell, the only input of tables, pages and W&B. docs/record.md documents the format.

Records are read here and nowhere else, so that nobody but this module knows of formats: records that it returns have the
present one.
"""

import math
import sys
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from qdexp import files, shape
from qdexp.errors import UserError
from qdexp.layout import Layout, records_in

FORMAT = 2
TOTAL = "total"
"""Among the costs of stages: of all of them."""
Record = dict[str, Any]


def write(out: Path, record: Record) -> Path:
    """Writes the record whole, in place of an older one of the same cell."""
    target = Layout(out).record(record["cell"])
    target.parent.mkdir(parents=True, exist_ok=True)
    files.write_sealed(target, _plain(record))
    return target


def _plain(value: Any) -> Any:
    """null in place of NaN and infinity, which JSON has not: a network that is quantized to pieces still gets its record. And
    text, such as a path, that any file can hold."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_plain(item) for item in value]
    if isinstance(value, str):
        return shape.unicode(value)
    return None if isinstance(value, float) and not math.isfinite(value) else value


def read(out: Path, cell: str) -> Record | None:
    """The cell's record if it is there, whole and of the present format: an older one is made anew, out of the store."""
    try:
        record = _content(Layout(out).record(cell))
        shape.check(record)
    except (OSError, ValueError):
        return None
    return record if record.get("format") == FORMAT and record["cell"] == cell else None


def unreadable(out: Path, cell: str) -> str:
    """The fault of the cell's record, in one line; empty where it can be read, or there is none."""
    path = Layout(out).record(cell)
    try:
        found = _read(path) if path.exists() else None
    except UserError as error:
        return str(error)
    other = "" if found is None or found["cell"] == cell else found["cell"]
    return f"{path} is the record of {other}: delete it and run the sweep again" if other else ""


def read_complete(out: Path, cell: str, keys: Mapping[str, str] = MappingProxyType({})) -> Record | None:
    """Read a cell's record, if the cell has succeeded and the record holds what the stages with these ``keys`` have made."""
    record = read(out, cell)
    complete = record is not None and record.get("status") == "complete" and keys.items() <= record["keys"].items()
    return record if complete else None


def extended(old: Record | None, new: Record) -> Record:
    """The ``new`` record of a cell with what the ``old`` one holds beside: metrics that were measured before, and not now.

    They are of the same images under the same protocol, or the cell would have another name.
    """
    measures = {} if old is None else old.get("measures", {})
    kept = {name: told for name, told in measures.items() if name not in new["measures"]}
    if old is not None and kept:
        numbers = {key for told in kept.values() for key in told["numbers"]}
        read = {told.get("features") for told in kept.values()}
        roles = kept.keys() | {role for role, key in old["keys"].items() if key in read}
        new = new | {"measures": new["measures"] | kept}
        new["metrics"] = {key: value for key, value in old["metrics"].items() if key in numbers} | new["metrics"]
        for part in ("keys", "stages", "costs"):
            new[part] = {role: told for role, told in old[part].items() if role in roles} | new[part]
        asked = {name: node for name, node in old["config"]["metric"].items() if name in kept}
        new["config"] = new["config"] | {"metric": new["config"]["metric"] | asked}
    return new | {"costs": new["costs"] | {TOTAL: _total(new["costs"])}}


def without(record: Record, names: Collection[str]) -> Record:
    """The record as if the metrics of these names had not been measured."""
    measures = record.get("measures", {})
    numbers = {key for name in names if name in measures for key in measures[name]["numbers"]}
    parts = ("measures", "keys", "stages", "costs")
    kept = {part: {role: told for role, told in record[part].items() if role not in names} for part in parts if part in record}
    costs = {role: told for role, told in kept["costs"].items() if role != TOTAL}
    metrics = {key: value for key, value in record["metrics"].items() if key not in numbers}
    asked = {name: node for name, node in record["config"].get("metric", {}).items() if name not in names}
    config = record["config"] | {"metric": asked}
    return record | kept | {"metrics": metrics, "config": config, "costs": costs | {TOTAL: _total(costs)}}


def _total(costs: dict[str, dict[str, float]]) -> dict[str, float]:
    """The cost of the cell from an empty store: seconds add up, memory peaks do not."""
    seconds = sum(cost["seconds"] for cost in costs.values())
    return {"seconds": round(seconds, 3), "peak_memory_mb": max(cost["peak_memory_mb"] for cost in costs.values())}


def read_records(source: Path | Iterable[Path]) -> list[Record]:
    """The records in a folder (its ``*.json``, by name) or in the files given, in their order, as of the present format.

    Raises UserError where a folder holds none, or where a file is truncated, of an unknown format, or not a record at all.
    """
    if not isinstance(source, Path):
        return [_read(path) for path in source]
    paths = records_in(source)
    if not paths:
        raise UserError(f"{source} holds no records (*.json): name the folder of a sweep that has run")
    return [_read(path) for path in paths]


def readable(paths: Iterable[Path]) -> list[Record]:
    """Read the files that are records, as of the present format; one line is printed for each that is none, or truncated."""
    found = []
    for path in paths:
        try:
            found.append(_read(path))
        except UserError as error:
            print(f"qdexp: left out: {' '.join(str(error).split())}", file=sys.stderr, flush=True)
    return found


def flat(tree: dict[str, Any], separator: str = ".", prefix: str = "") -> dict[str, Any]:
    """``{"calib": {"timesteps": 10}}`` as ``{"calib.timesteps": 10}``."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        path = f"{prefix}{name}"
        leaves |= flat(value, separator, f"{path}{separator}") if isinstance(value, dict) else {path: value}
    return leaves


def _content(path: Path) -> Record:
    """The content of a record's file, without its seal."""
    record = files.read_sealed(path)
    record.pop(files.SEAL, None)
    return record


def _read(path: Path) -> Record:
    try:
        record = _content(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is truncated, or not what was written ({error}): delete it and run the sweep again") from error
    if not isinstance(record, dict) or not {"format", "cell", "status"} <= record.keys():
        raise UserError(f"{path} is not a record of a cell: name one, or move it out of the folder of records")
    if record["format"] not in (1, FORMAT):
        raise UserError(f"{path} has format {record['format']}, this version reads 1 and {FORMAT}: run the sweep again")
    try:
        shape.check(record)
    except ValueError as error:
        raise UserError(f"{path} is no whole record ({error}): delete it and run the sweep again") from error
    return _from_first(record) if record["format"] == 1 else record


def _from_first(record: Record) -> Record:
    """A record of format 1 as one of format 2.

    Its ``kid`` was the mean over random subsets. It has no digests of files and does not show what it has in common with the
    other seeds of its sweep, so it is a configuration of its own.
    """
    renamed = {"kid": "kid_subsets", "kid_std": "kid_subsets_std"}
    metrics = {renamed.get(name, name): value for name, value in record.get("metrics", {}).items()}
    return record | {"format": FORMAT, "metrics": metrics, "identity": record["cell"], "files": {}}
