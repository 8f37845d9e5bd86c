"""The cells of a sweep, and the entries of the store that they need: each run of the sweep lists its own before it looks into
the store, and what any of them lists is not pruned."""

import contextlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

from qdexp import files, shape
from qdexp.errors import UserError
from qdexp.layout import Sweep, files_of


@dataclass(frozen=True)
class Line:
    """A cell's name for people, and the ``entries`` that it needs."""

    label: str
    entries: list[str]


def write(sweep: Sweep, cells: Mapping[str, Line]) -> None:
    """Adds ``cells``, by the names of their records, to those of the runs before. Raises UserError as ``read`` does."""
    if cells.items() <= read(sweep).items():
        with contextlib.suppress(FileNotFoundError):  # deleted meanwhile
            os.utime(files_of(sweep.cells)[-1])  # it is the newest sweep again
            return
    files.add_text(sweep.cells, text(cells))


def text(cells: Mapping[str, Line]) -> str:
    """A list of cells as a file holds it."""
    return json.dumps({name: asdict(cell) for name, cell in cells.items()}, indent=1)


def read(sweep: Sweep) -> dict[str, Line]:
    """The cells of all runs of a sweep; of one that several have listed, what the last one says.

    Raises UserError where a list is truncated or something else.
    """
    return {name: cell for path in files_of(sweep.cells) for name, cell in of_run(path).items()}


def of_run(path: Path) -> dict[str, Line]:
    """Read the cells that one file lists. Raises as ``read`` does."""
    try:
        cells = files.read_as(path, dict[str, Line])
        for name in (*cells, *(entry for cell in cells.values() for entry in cell.entries)):
            if not shape.is_file_name(name):
                raise ValueError(f"{name!r} is no name of a file")
        return cells
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is no list of cells ({error}): delete it and run its sweep again") from error
