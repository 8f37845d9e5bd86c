"""Methods compared: a line for each configuration, its seeds pooled, against a baseline on the same noise."""

import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from qdexp.errors import UserError
from qdexp.report.evidence import Evidence
from qdexp.report.records import Record
from qdexp.report.statistics.estimate import Estimate, Interval, over_seeds, pool
from qdexp.report.table import common_protocol, in_order, options, row_names


@dataclass(frozen=True)
class Metric:
    """A number of the record: what it is called, the factor it is shown with, and whether more of it is better."""

    key: str
    title: str
    factor: float = 1.0
    digits: int = 2
    higher: bool = False
    significant: bool = False
    """Shown with ``digits`` significant digits: what spans orders of magnitude."""


METRICS = (
    Metric("fid", "FID"),
    Metric("sfid", "sFID"),
    Metric("kid", "KID x1000", 1000),
    Metric("isc", "IS", higher=True),
    Metric("clip", "CLIP", higher=True),
    Metric("precision", "precision", digits=3, higher=True),
    Metric("recall", "recall", digits=3, higher=True),
    Metric("psnr", "PSNR to FP", higher=True),
    Metric("ssim", "SSIM to FP", digits=3, higher=True),
    Metric("lpips", "LPIPS to FP", digits=3),
    Metric("distance", "MSE to FP x1000", 1000, 3, significant=True),
    Metric("noise_error", "noise error x1000", 1000, 3, significant=True),
    Metric("size_nominal_mb", "nominal MB"),
    Metric("size_stored_mb", "stored MB"),
    Metric("gbops", "GBOPs", digits=1),
    Metric("coverage_macs", "quantized MACs, %", 100, digits=1, higher=True),
    Metric("coverage_parameters", "quantized parameters, %", 100, digits=1, higher=True),
)
EXACT = {"size_nominal_mb", "size_stored_mb", "gbops", "coverage_macs", "coverage_parameters"}
"""Counted, not measured: no interval."""
DIFFERENCES = ("fid", "kid", "clip")
"""Shown as differences to the baseline too; the distances to full precision are differences already."""


@dataclass(frozen=True)
class Line:
    """One configuration: its records (one a seed), its numbers, and their differences to the baseline's."""

    name: str
    records: list[Record]
    numbers: dict[str, Interval]
    differences: dict[str, Interval]

    @property
    def axes(self) -> dict[str, Any]:
        axes: dict[str, Any] = self.records[0]["axes"]
        return axes


@dataclass(frozen=True)
class Comparison:
    """All of one protocol, in the table's order.

    ``lines``: seeds pooled. ``cells``: each record alone, with its ``estimates`` by cell and metric. ``baseline``: what was
    compared with, if it was found.
    """

    lines: list[Line]
    cells: list[Line]
    estimates: dict[str, dict[str, Estimate]]
    protocol: dict[str, Any]
    baseline: str | None


def compare(records: Sequence[Record], evidence: Evidence, baseline: str = "fp") -> Comparison:
    """Compares the complete records; ``baseline`` is a method or a record's cell.

    Each cell is compared with the baseline of its own model and seed, or with the model's only one. Raises UserError for
    records of several protocols, for none, for LPIPS of several weights, and for a baseline other than fp that is not there.
    """
    complete = [record for record in in_order(list(records)) if record["status"] == "complete"]
    protocol = common_protocol(complete)
    if len(several := lpips_lines(complete)) > 1:
        raise UserError(f"LPIPS of different weights do not compare, make one table of each: {'; '.join(several)}")
    estimates = {record["cell"]: evidence.estimates(record) for record in complete}
    rivals = [record for record in complete if baseline in (record["cell"], record["axes"]["method"])]
    if not rivals and baseline != "fp":
        known = sorted({record["axes"]["method"] for record in complete})
        raise UserError(f"--baseline {baseline}: no such cell or method; methods there: {', '.join(known)}")

    def line(name: str, group: list[Record]) -> Line:
        pairs = [(estimates[record["cell"]], estimates.get(_rival(record, rivals), {})) for record in group]
        own = {record["cell"] for record in group} & {record["cell"] for record in rivals}
        numbers = _numbers(group, [one for one, _ in pairs])
        return Line(name, group, numbers, {} if own else _differences(pairs))

    groups = grouped(complete)
    lines = [line(*one) for one in zip(row_names([group[0] for group in groups]), groups, strict=True)]
    cells = [line(name, [record]) for name, record in zip(row_names(complete), complete, strict=True)]
    return Comparison(lines, cells, estimates, protocol, baseline if rivals else None)


def grouped(records: Sequence[Record]) -> list[list[Record]]:
    """Records that differ in nothing but their seed, in the order of their first."""
    groups: dict[str, list[Record]] = {}
    for record in records:
        told = {name: value for name, value in options(record).items() if name != "seed"}
        axes = {name: value for name, value in record["axes"].items() if name != "seed"}
        groups.setdefault(json.dumps([axes, told], sort_keys=True), []).append(record)
    return list(groups.values())


def _rival(record: Record, rivals: Sequence[Record]) -> str:
    """The cell that the record is compared with: of its model and bits if there are several, then of its seed."""
    found: list[Record] = list(rivals)
    for axis in ("model", "quant", "seed"):
        alike = [rival for rival in found if rival["axes"].get(axis) == record["axes"].get(axis)]
        if axis == "model" or alike:
            found = alike
    return str(found[0]["cell"]) if found else ""


def lpips_lines(records: Sequence[Record]) -> list[str]:
    """What LPIPS was measured with, where it was: ``LPIPS of VGG-16 397923af by lpips 0.1.4``."""
    found = [record["lpips"] for record in records if "lpips" in record]
    lines = (f"LPIPS of {made['backbone']} {made['weights_digest'][:8]} by lpips {made['library']}" for made in found)
    return list(dict.fromkeys(lines))


def _exact(value: float) -> Interval:
    """A value without an interval."""
    return Interval(value, math.nan, math.nan)


def _numbers(group: Sequence[Record], estimates: Sequence[dict[str, Estimate]]) -> dict[str, Interval]:
    numbers = {}
    for metric in METRICS:
        values = [value for record in group if (value := record.get("metrics", {}).get(metric.key)) is not None]
        measured = [found[metric.key] for found in estimates if metric.key in found]
        if measured and len(measured) == len(group):
            numbers[metric.key] = pool(measured)
        elif len(values) == len(group) > 1 and metric.key not in EXACT:
            numbers[metric.key] = over_seeds(values)
        elif values:
            numbers[metric.key] = _exact(statistics.mean(values))
    return numbers


def _differences(pairs: Sequence[tuple[dict[str, Estimate], dict[str, Estimate]]]) -> dict[str, Interval]:
    return {
        key: pool([own[key] - other[key] for own, other in pairs])
        for key in DIFFERENCES
        if all(key in own and key in other for own, other in pairs)
    }


def write_number(metric: Metric, interval: Interval | None, form: Callable[[str, str], str] = "{} ± {}".format) -> str:
    """``1.85 ± 0.33``, without the half width where it is not known; ``-`` where there is no number."""
    if interval is None:
        return "-"
    value = plain(metric, interval.value)
    return value if math.isnan(interval.half) else form(value, plain(metric, interval.half))


def write_difference(metric: Metric, interval: Interval | None) -> str:
    """``+0.62 [0.41, 0.83]``."""
    if interval is None:
        return "-"
    shown = f"+{plain(metric, interval.value)}" if interval.value >= 0 else plain(metric, interval.value)
    return f"{shown} [{plain(metric, interval.low)}, {plain(metric, interval.high)}]"


def plain(metric: Metric, value: float) -> str:
    """A value in the metric's unit and digits."""
    value *= metric.factor
    if metric.significant and value:
        return f"{value:#.{metric.digits}g}".rstrip(".") if abs(value) < 10**metric.digits else f"{value:.0f}"
    return f"{value:.{metric.digits}f}"
