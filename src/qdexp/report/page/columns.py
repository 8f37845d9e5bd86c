"""The rows of a table as the page holds them: column by column, which takes a fraction of what as many objects take.

{"of": [...], "at": [...]}         a column of few values: each once, and which of them a row has; without ``at``, all the first
{"value": [...], "half": [...]}    a column of numbers with their intervals, which are symmetric; null where there is none
"""

import json
import math
from collections.abc import Iterable, Sequence
from typing import Any

from qdexp.report.comparison import Line
from qdexp.report.identity import calibrated
from qdexp.statistics.estimate import Interval

DIGITS, OF_HALF = 10, 6
"""Significant ones of a number, and of half the width of its interval: more than any table shows."""


def columns(lines: Sequence[Line]) -> dict[str, Any]:
    """The columns that lines and cells have in common."""
    return {
        "name": [line.name for line in lines],
        "status": coded(line.records[0]["status"] for line in lines),
        "seconds": [rounded(line.seconds) for line in lines],
        "verdict": coded(line.verdict for line in lines),
        "calibrated": coded(calibrated(line.records[0]) for line in lines),
        "axes": {name: coded(line.axes.get(name) for line in lines) for name in _names(line.axes for line in lines)},
        "numbers": _intervals([line.numbers for line in lines]),
        "differences": _intervals([line.differences for line in lines]),
    }


def coded(values: Iterable[Any]) -> dict[str, Any]:
    """A column of plain values, many of them equal."""
    known: dict[str, tuple[int, Any]] = {}
    at = [known.setdefault(json.dumps(value), (len(known), value))[0] for value in values]
    of = [value for _, value in known.values()]
    return {"of": of, "at": at} if len(of) > 1 else {"of": of}


def rounded(value: Any, digits: int = 4) -> Any:
    """Numbers cut to what can be shown, in whatever they are in."""
    if isinstance(value, dict):
        return {name: rounded(item, digits) for name, item in value.items()}
    if isinstance(value, list):
        return [rounded(item, digits) for item in value]
    return float(f"{value:.{digits}g}") if isinstance(value, float) else value


def _intervals(rows: Sequence[dict[str, Interval]]) -> dict[str, dict[str, list[float | None]]]:
    """One column for each number."""
    return {name: _column([row.get(name) for row in rows]) for name in _names(rows)}


def _column(intervals: Sequence[Interval | None]) -> dict[str, list[float | None]]:
    halves = [None if one is None else _known(one.half, OF_HALF) for one in intervals]
    known = {"half": halves} if any(half is not None for half in halves) else {}
    return {"value": [None if one is None else _known(one.value, DIGITS) for one in intervals], **known}


def _known(value: float, digits: int) -> float | None:
    return None if math.isnan(value) else float(f"{value:.{digits}g}")


def _names(rows: Iterable[Iterable[str]]) -> list[str]:
    return list(dict.fromkeys(name for row in rows for name in row))
