"""Methods compared: a line for each configuration, its seeds pooled, against a baseline on the same noise.

Which records are a configuration, and which is whose baseline, is settled by content: ``qdexp.report.identity``.
"""

import math
import re
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from qdexp.errors import UserError
from qdexp.numbers import Number, Place, numbers_of
from qdexp.record import Record
from qdexp.report.evidence import Evidence
from qdexp.report.identity import Baselines, calibrated, full_precision, grouped
from qdexp.report.protocols import common_protocol
from qdexp.report.rows import in_order, names, row_names
from qdexp.statistics.estimate import Estimate, Interval, pool

DIGEST, DIGITS = re.compile("[0-9a-f]{64}"), 8
"""The digits of a file's digest, and how many of them are shown."""
SILENT = "not said"
"""The word for a metric that was measured before it said with what it measures."""


@dataclass(frozen=True)
class Line:
    """One configuration: its records (one a seed), its numbers, and their differences to the baseline's.

    ``verdict``: whether the intervals of the differences hold all that moves them. Those of one seed are over the images alone:
    where calibration follows the seed, another seed, or another kind of CPU, may move the number further.
    """

    name: str
    records: list[Record]
    numbers: dict[str, Interval]
    differences: dict[str, Interval]
    verdict: bool = False

    @property
    def axes(self) -> dict[str, Any]:
        axes: dict[str, Any] = self.records[0]["axes"]
        return axes

    @property
    def seconds(self) -> float | None:
        """The seconds of the mean cell from an empty store; None where they are not known."""
        totals = [record["costs"]["total"]["seconds"] for record in self.records if "total" in record.get("costs", {})]
        return statistics.mean(totals) if totals else None

    @property
    def settled(self) -> bool:
        """Whether the intervals of its own numbers hold all that moves them."""
        return settled(self.records)


def settled(records: Sequence[Record]) -> bool:
    """Whether there are several seeds, or none that matters."""
    return len({record["cell"] for record in records}) > 1 or not any(map(calibrated, records))


@dataclass(frozen=True)
class Comparison:
    """All of one protocol, in the table's order.

    ``numbers``: what the records say of those that they hold, in the order of columns. ``lines``: seeds pooled. ``cells``: each
    record alone, with its ``estimates`` by cell and metric. ``failed``: the records of cells that failed. ``baseline``: what
    was compared with, if it was found; ``first``: that is the first line, since none was named and full precision is not
    there; ``alone``: the lines that it does not belong to.
    """

    numbers: list[Number]
    lines: list[Line]
    cells: list[Line]
    failed: list[Record]
    estimates: dict[str, dict[str, Estimate]]
    protocol: dict[str, Any]
    baseline: str | None
    first: bool
    alone: list[str]

    def shown(self, place: Place) -> list[Number]:
        """The numbers that are shown at a place and that some line has; of shares, where one has less than all of it."""
        found = []
        for number in self.numbers:
            values = [line.numbers[number.key].value for line in self.lines if number.key in line.numbers]
            if place in number.shown and values and (number.kind != "share" or min(values) < 1):
                found.append(number)
        return found

    @property
    def costs(self) -> list[Number]:
        """The costs of the overview that tell lines apart: against another a Pareto figure is two columns of dots.

        They do where quantized lines differ in them. That full precision is larger is known before, but not what was measured
        with something, as a latency is with a machine: there full precision counts too.
        """
        measures = [told for line in self.lines for told in line.records[0].get("measures", {}).values()]
        measured = {key for told in measures if told.get("made_with") for key in told["numbers"]}
        found = []
        for number in self.shown("overview"):
            among = [line for line in self.lines if number.key in measured or not full_precision(line.records[0])]
            if number.kind == "cost" and apart([one.numbers[number.key].value for one in among if number.key in one.numbers]):
                found.append(number)
        return found

    @property
    def headline(self) -> Number | None:
        """The first number whose differences to the baseline are taken, where there are any: these get a column."""
        taken = {key for line in self.lines for key in line.differences}
        return next((number for number in self.numbers if number.key in taken), None)


def apart(costs: Sequence[float]) -> bool:
    """Whether some differ by more than a twentieth."""
    return len(costs) > 1 and max(costs) > 1.05 * min(costs)


def compare(records: Sequence[Record], evidence: Evidence, baseline: str | None = None) -> Comparison:
    """Compares the complete records; ``baseline`` is a method or a record's cell: full precision where none is named, and the
    first line where there is none.

    Each cell is compared with the baseline of its own network, and of its own seed where the baseline has one. Raises UserError
    for records of several protocols, for none, for a metric that was measured with several things, and for a baseline that is
    not there (but fp), or could be several.
    """
    protocol = common_protocol(records)
    failed = [record for record in records if record["status"] != "complete"]
    groups = grouped(in_order([record for record in records if record["status"] == "complete"]))
    complete = [record for group in groups for record in group]
    refuse_mixed(complete)
    numbers = numbers_of(complete)
    estimates = {record["cell"]: evidence.estimates(record) for record in complete}
    baselines = Baselines(complete, baseline, groups[0] if len(groups) > 1 else ())
    rivals = {record["cell"]: baselines.of(record) for record in complete}

    def line(name: str, group: list[Record]) -> Line:
        against = [rival for record in group if (rival := rivals[record["cell"]]) is not None]
        pooled = _pooled(group, [estimates[record["cell"]] for record in group], numbers)
        if len(against) < len(group) or {one["cell"] for one in against} & {record["cell"] for record in group}:
            return Line(name, group, pooled, {})
        pairs = [(estimates[own["cell"]], estimates[rival["cell"]]) for own, rival in zip(group, against, strict=True)]
        return Line(name, group, pooled, _differences(pairs, numbers), settled(group) and settled(against))

    titles = row_names(groups)
    lines = [line(*one) for one in zip(titles, groups, strict=True)]
    cells = [line(name, [record]) for name, record in zip(names(complete), complete, strict=True)]
    alone = [one.name for one in lines if any(rivals[record["cell"]] is None for record in one.records)]
    first = bool(baselines.row)
    known = titles[0] if first else baselines.named if baselines.rivals else None
    return Comparison(numbers, lines, cells, failed, estimates, protocol, known, first, alone)


def refuse_mixed(records: Sequence[Record]) -> None:
    """Raises UserError where a metric was measured with different things: its numbers do not compare."""
    for name, lines in measured_with(records).items():
        if len(lines) > 1:
            raise UserError(f"{name} was measured with different things, make one table of each: {'; '.join(lines)}")


def measured_with(records: Sequence[Record]) -> dict[str, list[str]]:
    """The things that each metric was measured with beside the protocol: ``LPIPS to FP: backbone VGG-16, weights 397923af``."""
    found: dict[str, dict[str, None]] = {}
    for record in records:
        for name, told in record.get("measures", {}).items():
            key, described = next(iter(told["numbers"].items()), (name, dict[str, Any]()))
            made_with = told.get("made_with", {}).items()
            parts = [f"{what} {value[:DIGITS] if DIGEST.fullmatch(value) else value}" for what, value in made_with]
            found.setdefault(name, {})[f"{described.get('title', key)}: {', '.join(parts) or SILENT}"] = None
    return {name: [*lines] for name, lines in found.items() if any(not line.endswith(SILENT) for line in lines)}


def _pooled(
    group: Sequence[Record], estimates: Sequence[dict[str, Estimate]], numbers: Sequence[Number]
) -> dict[str, Interval]:
    """Means over the seeds; with an interval where each was estimated from images, so that it holds both."""
    found = {}
    for key in (number.key for number in numbers):
        values = [value for record in group if (value := record["metrics"].get(key)) is not None]
        measured = [one[key] for one in estimates if key in one]
        if len(measured) == len(group):
            found[key] = pool(measured)
        elif len(values) == len(group):
            found[key] = Interval(statistics.mean(values), math.nan, math.nan)
    return found


def _differences(
    pairs: Sequence[tuple[dict[str, Estimate], dict[str, Estimate]]], numbers: Sequence[Number]
) -> dict[str, Interval]:
    return {
        number.key: pool([own[number.key] - other[number.key] for own, other in pairs])
        for number in numbers
        if number.differences and all(number.key in own and number.key in other for own, other in pairs)
    }


def write_number(number: Number, interval: Interval | None) -> str:
    """``1.85 ± 0.33``, without the half width where it is not known; ``-`` where there is no number."""
    if interval is None:
        return "-"
    value = number.text(interval.value)
    return value if math.isnan(interval.half) else f"{value} ± {number.text(interval.half)}"


def write_difference(number: Number, interval: Interval | None) -> str:
    """``+0.62 [0.41, 0.83]``."""
    if interval is None:
        return "-"
    shown = f"+{number.text(interval.value)}" if interval.value >= 0 else number.text(interval.value)
    return f"{shown} [{number.text(interval.low)}, {number.text(interval.high)}]"
