"""Reading records: one JSON file a cell, the only input of every table."""

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from qdexp import files
from qdexp.errors import UserError

Record = dict[str, Any]

FORMAT = 1
"""The version of the record's layout that is read here."""


def read_records(source: Path | Iterable[Path]) -> list[Record]:
    """The records in a folder (its ``*.json``, by name) or in the files given, in their order.

    Raises UserError where a folder holds none, or where a file is torn, of another format, or not a record at all.
    """
    if not isinstance(source, Path):
        return [_read(path) for path in source]
    paths = sorted(source.glob("*.json"))
    if not paths:
        raise UserError(f"{source} holds no records (*.json): name the folder of a sweep that has run")
    return [_read(path) for path in paths]


def _read(path: Path) -> Record:
    try:
        record = files.read_json(path)
    except OSError as error:
        raise UserError(f"{path} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise UserError(f"{path} is torn or no JSON: delete it and run the sweep again") from error
    if not isinstance(record, dict) or not {"format", "cell", "status", "axes"} <= record.keys():
        raise UserError(f"{path} is not a record of a cell: move it out of the folder")
    if record["format"] != FORMAT:
        raise UserError(f"{path} has format {record['format']}, this version reads {FORMAT}: run the sweep again")
    return record
