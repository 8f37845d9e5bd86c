"""A sweep that has run, as the tests of reports are given one."""

from pathlib import Path
from typing import Any, NamedTuple


class Study(NamedTuple):
    """Its name, output folder and records."""

    name: str
    out: Path
    records: list[dict[str, Any]]
