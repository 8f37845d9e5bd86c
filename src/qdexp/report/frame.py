"""Records and comparisons as tables to compute with: numbers unrounded, in their records' units, with their intervals."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pandas as pd

from qdexp.layout import Layout
from qdexp.record import Record, read_records
from qdexp.report.comparison import Comparison, Line
from qdexp.report.evidence import Evidence
from qdexp.report.rows import in_order
from qdexp.statistics.estimate import Interval

ENDS = ("", "_low", "_high")
"""The endings of the columns of a value, and of the ends of its interval."""
MINUS = "_minus_baseline"
PROTOCOL = ("hash", "name", "n", "steps", "extractor", "extractor_digest")


def load_records(place: str | Path = "outputs") -> pd.DataFrame:
    """Read the records of an output folder, or of any folder of records.

    Args:
        place: An output folder (its ``records/`` are read), or a folder of records beside its ``store/``.

    Returns:
        One row per cell, full precision first, with the columns ``cell``, ``status``, ``error``; the axes (``model``,
        ``method``, ``quant``, ``seed``, ...); ``protocol_hash``, since only numbers of one hash compare; ``identity``, the same
        for cells that differ in nothing but their seed; every metric of the records, sizes among them; ``METRIC_low`` and
        ``METRIC_high``, the ends of its 95 % interval over the images, where the store has the values of each image;
        ``seconds`` from an empty store; and the paths ``record``, ``samples`` and ``checkpoint``.

    Raises:
        qdexp.errors.UserError: There is no record, or one that is corrupt.
    """
    records = Layout(Path(place)).records
    folder = records if records.is_dir() else Path(place)
    evidence = Evidence(folder.parent)
    return pd.DataFrame([_row(record, evidence, folder) for record in in_order(read_records(folder))])


def _row(record: Record, evidence: Evidence, folder: Path) -> dict[str, Any]:
    complete = record["status"] == "complete"
    estimates = evidence.estimates(record) if complete else {}
    return {
        "cell": record["cell"],
        "status": record["status"],
        "error": record.get("error", {}).get("message"),
        **record["axes"],
        "protocol_hash": record["protocol"]["hash"],
        "identity": record["identity"],
        **record.get("metrics", {}),
        **_columns({name: one.interval() for name, one in estimates.items()}),
        "seconds": record.get("costs", {}).get("total", {}).get("seconds"),
        "record": str(folder / f"{record['cell']}.json"),
        **{name: str(folder.parent / path) for name, path in record.get("artifacts", {}).items()},
    }


def of_comparison(comparison: Comparison) -> pd.DataFrame:
    """Make a table of a comparison.

    Args:
        comparison: A comparison, see ``qdexp.report.comparison.compare``.

    Returns:
        One row per line of the comparison, in its order, with the columns ``line``, its name; the number of its ``seeds``;
        every metric and its difference to the ``baseline`` (``METRIC_minus_baseline``), each with ``_low`` and ``_high``, empty
        where unknown; ``protocol_NAME``; the others as ``load_records`` has them, ``seconds`` of the mean cell.
    """
    axes = dict.fromkeys(name for line in comparison.lines for name in line.axes if name != "seed")
    numbers = [f"{number.key}{end}" for number in comparison.numbers for end in ENDS]
    differences = [f"{number.key}{MINUS}{end}" for number in comparison.numbers if number.differences for end in ENDS]
    shared = {"baseline": comparison.baseline} | {f"protocol_{name}": comparison.protocol.get(name) for name in PROTOCOL}
    columns = ["line", "seeds", "identity", *axes, *numbers, "baseline", *differences, *list(shared)[1:], "seconds"]
    return pd.DataFrame([_line(line) | shared for line in comparison.lines], columns=columns)


def _line(line: Line) -> dict[str, Any]:
    return {
        "line": line.name,
        "seeds": len(line.records),
        "identity": line.records[0]["identity"],
        **line.axes,
        **_columns(line.numbers),
        **_columns({f"{key}{MINUS}": interval for key, interval in line.differences.items()}),
        "seconds": line.seconds,
    }


def intervals(numbers: pd.DataFrame, name: str) -> Iterator[Interval | None]:
    """A column of numbers with the ends of their intervals; None where there is no number."""
    for ends in numbers[[f"{name}{end}" for end in ENDS]].itertuples(index=False, name=None):
        yield None if math.isnan(ends[0]) else Interval(*ends)


def _columns(numbers: Mapping[str, Interval]) -> dict[str, float]:
    return {
        f"{name}{end}": value
        for name, interval in numbers.items()
        for end, value in zip(ENDS, (interval.value, interval.low, interval.high), strict=True)
    }
