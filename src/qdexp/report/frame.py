"""Records as a table to compute with: one row per cell, numbers in their records' units, with intervals where there are any."""

from pathlib import Path
from typing import Any

import pandas as pd

from qdexp.layout import Layout
from qdexp.record import Record, read_records
from qdexp.report.evidence import Evidence
from qdexp.report.rows import in_order


def load_records(place: str | Path = "outputs") -> pd.DataFrame:
    """Read the records of an output folder, or of any folder of records.

    Args:
        place: An output folder (its ``records/`` are read), or a folder of records beside its ``store/``.

    Returns:
        One row per cell, full precision first. Columns: ``cell``, ``status``, ``error``; the axes (``model``, ``method``,
        ``quant``, ``seed``, ...); ``protocol_hash``, only numbers of one of which compare; ``identity``, the same for cells
        that differ in nothing but their seed; every metric of the records; ``METRIC_low`` and ``METRIC_high``, the ends of its
        95 % interval over the images, where the store has what tells it; and ``seconds`` from an empty store.

    Raises:
        qdexp.errors.UserError: There is no record, or one that is corrupt.
    """
    records = Layout(Path(place)).records
    folder = records if records.is_dir() else Path(place)
    evidence = Evidence(folder.parent)
    return pd.DataFrame([_row(record, evidence) for record in in_order(read_records(folder))])


def _row(record: Record, evidence: Evidence) -> dict[str, Any]:
    complete = record["status"] == "complete"
    intervals = {name: one.interval() for name, one in evidence.estimates(record).items()} if complete else {}
    return {
        "cell": record["cell"],
        "status": record["status"],
        "error": record.get("error", {}).get("message"),
        **record["axes"],
        "protocol_hash": record["protocol"]["hash"],
        "identity": record["identity"],
        **record.get("metrics", {}),
        **{
            f"{name}_{end}": value
            for name, interval in intervals.items()
            for end, value in (("low", interval.low), ("high", interval.high))
        },
        "seconds": record.get("costs", {}).get("total", {}).get("seconds"),
    }
