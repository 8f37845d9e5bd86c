"""A comparison as a table: for the terminal, as Markdown, as LaTeX (booktabs) and as CSV.

Below each stand n, protocol and extractor, what the intervals are of, which lines are a finding, and what failed. The CSV holds
every number unrounded, with these beside it.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import accumulate
from statistics import mean
from textwrap import wrap

from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qdexp.report.comparison import (
    DIFFERENCES,
    METRICS,
    Comparison,
    Line,
    Metric,
    lpips_lines,
    write_difference,
    write_number,
)
from qdexp.report.protocols import protocol_line, rehearsal
from qdexp.report.rows import bits

Form = Callable[[str, str], str]
PARTIAL = ("coverage_macs", "coverage_parameters")
"""Shown where a line has less than all of it."""
SHOWN = ("fid", "kid", "isc", "clip", "psnr", "ssim", "lpips", "noise_error", "size_stored_mb", "gbops", *PARTIAL)
"""The metrics of the table; the CSV and the page have all."""
BRIEF = ("fid", "kid", "clip", "noise_error", "distance", "size_stored_mb")
"""Those of the table that a sweep ends with, which has to fit a terminal."""
FIDELITY = ("clip", "psnr", "ssim", "lpips", "noise_error", "distance", "size_stored_mb")
"""The same where images were compared with full precision's alone."""
KNOWN = {metric.key: metric for metric in METRICS}
LONGEST = 100
"""Characters of the longest line that tells of a failed cell."""


@dataclass(frozen=True)
class Column:
    """A header, the text of a line, and whether it is a number."""

    header: str
    text: Callable[[Line], str]
    number: bool = True


def brief(comparison: Comparison) -> Sequence[str]:
    """The metrics of the table that a sweep ends with."""
    return BRIEF if any("fid" in line.numbers for line in comparison.lines) else FIDELITY


def columns(comparison: Comparison, shown: Sequence[str] = SHOWN, form: Form = "{} ± {}".format) -> list[Column]:
    """The columns that at least one line fills."""
    lines = comparison.lines
    found = [Column("method", lambda line: line.name, False), Column("bits", lambda line: bits(line.records[0]), False)]
    if any(len(line.records) > 1 for line in lines):
        found.append(Column("seeds", lambda line: str(len(line.records))))
    for metric in (KNOWN[key] for key in shown):
        values = [line.numbers[metric.key].value for line in lines if metric.key in line.numbers]
        if values and (metric.key not in PARTIAL or min(values) < 1):
            found.append(_measured(metric, form))
        if metric.key == "fid" and any(metric.key in line.differences for line in lines):
            found.append(_compared(metric, comparison.baseline))
    return [*found, Column("time", _time)]


def _measured(metric: Metric, form: Form) -> Column:
    return Column(metric.title, lambda line: write_number(metric, line.numbers.get(metric.key), form))


def _compared(metric: Metric, baseline: str | None) -> Column:
    return Column(f"{metric.title} - {baseline}", lambda line: write_difference(metric, line.differences.get(metric.key)))


def _time(line: Line) -> str:
    """Of the mean cell, from an empty store."""
    known = [record["costs"]["total"]["seconds"] for record in line.records if "total" in record.get("costs", {})]
    if not known:
        return "-"
    seconds = mean(known)
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def notes(comparison: Comparison) -> list[str]:
    """What must be said with the numbers: the protocol first."""
    lines = comparison.lines
    records = [*(record for line in lines for record in line.records), *comparison.failed]
    models = {str(record["axes"].get("model")) for record in records}
    said = [", ".join([*(models if len(models) == 1 else ()), *rehearsal(records), protocol_line(comparison.protocol)])]
    said += lpips_lines(records)
    sure = [line for line in lines if any(not math.isnan(interval.half) for interval in line.numbers.values())]
    if sure:
        seeds = " and, where there are several, the seeds" if any(len(line.records) > 1 for line in sure) else ""
        said.append(f"±: half the width of a 95 % interval over the images (delete-group jackknife){seeds}")
    if not all(line.settled for line in sure):
        said.append("one seed: the interval is over the images alone; another seed or kind of CPU moves what is calibrated too")
    if any(line.differences for line in lines):
        said.append("FID differences: 95 % intervals on the same noise, in pairs; one that holds 0 is no finding")
    if comparison.baseline is not None and comparison.alone:
        said.append(f"no {comparison.baseline} of the same network to compare with: {', '.join(comparison.alone)}")
    return said


def failures(comparison: Comparison) -> list[str]:
    """One line per failed cell: where and why."""
    lines = []
    for record in comparison.failed:
        error = record.get("error", {})
        message = (str(error.get("message", "")).splitlines() or [""])[0]
        line = f"failed: {record['cell']} in {error.get('stage', '?')}: {error.get('type', '?')}: {message}"
        lines.append(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…")
    return lines


def to_terminal(comparison: Comparison, width: int, shown: Sequence[str] = SHOWN) -> Group:
    """For rich: the columns for which a terminal of this width has room, and below them what must be said."""
    told = columns(comparison, shown)
    widths = [_width(column, comparison.lines) for column in told]
    fitting = max(2, sum(needed <= width for needed in accumulate(one + 2 for one in widths)))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for column, least in zip(told[:fitting], widths, strict=False):
        if column.number:
            table.add_column("\n".join(wrap(column.header, least)), justify="right", width=least, no_wrap=True)
        else:
            table.add_column(column.header, min_width=least, overflow="fold")
    for line in comparison.lines:
        table.add_row(*(escape(column.text(line)) for column in told[:fitting]))
    more = [f"no room here for {', '.join(column.header for column in told[fitting:])}: table.md has all"]
    said = [*(more if told[fitting:] else []), *notes(comparison), *failures(comparison)]
    return Group(table, *map(Text, said))


def _width(column: Column, lines: Sequence[Line]) -> int:
    """What a column needs: numbers stay whole, names go on below at a space."""
    texts = [column.text(line) for line in lines]
    return max(map(len, [*column.header.split(), *(texts if column.number else " ".join(texts).split())]))


def to_markdown(comparison: Comparison, shown: Sequence[str] = SHOWN) -> str:
    """For GitHub; ends with a newline."""
    told = columns(comparison, shown)
    rows = [[column.header for column in told], ["---:" if column.number else "---" for column in told]]
    rows += [[column.text(line).replace("|", "\\|") for column in told] for line in comparison.lines]
    failed = [f"- {failure}" for failure in failures(comparison)]
    below = [*(f"{note}." for note in notes(comparison)), *([""] if failed else []), *failed]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *below]) + "\n"


def to_latex(comparison: Comparison) -> str:
    """A ``tabular`` for booktabs, the notes as comments above it."""
    shown = columns(comparison, form=r"{} $\pm$ {}".format)
    rows = [[_tex(column.header) for column in shown]]
    rows += [[column.text(line) if column.number else _tex(column.text(line)) for column in shown] for line in comparison.lines]
    header, *body = (" & ".join(row) + r" \\" for row in rows)
    spec = "".join("r" if column.number else "l" for column in shown)
    inner = [r"\toprule", header, r"\midrule", *body, r"\bottomrule"]
    above = [f"% {note}" for note in notes(comparison)]
    return "\n".join([*above, rf"\begin{{tabular}}{{{spec}}}", *inner, r"\end{tabular}"]) + "\n"


def _tex(text: str) -> str:
    """Text in which LaTeX sees no command."""
    return "".join({"\\": r"\textbackslash{}"}.get(sign, f"\\{sign}" if sign in "&%$#_{}" else sign) for sign in text)


def to_csv(comparison: Comparison) -> str:
    """A row a line: axes, every number with its interval, differences, and the protocol."""
    axes = list(dict.fromkeys(name for line in comparison.lines for name in line.axes if name != "seed"))
    protocol = ("hash", "name", "n", "steps", "extractor", "extractor_digest")
    parts = ("", "_low", "_high")
    numbers = [f"{metric.key}{part}" for metric in METRICS for part in parts]
    differences = [f"{key}_minus_baseline{part}" for key in DIFFERENCES for part in parts]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    known = [f"protocol_{name}" for name in protocol]
    writer.writerow(["line", "seeds", "identity", *axes, *numbers, "baseline", *differences, *known])
    for line in comparison.lines:
        measured = _flat(line.numbers.get(metric.key) for metric in METRICS)
        apart = _flat(line.differences.get(key) for key in DIFFERENCES)
        labels = [line.name, len(line.records), line.records[0]["identity"], *(line.axes.get(name, "") for name in axes)]
        writer.writerow(
            [*labels, *measured, comparison.baseline, *apart, *(comparison.protocol.get(name) for name in protocol)]
        )
    return text.getvalue()


def _flat(intervals: Iterable[object]) -> list[object]:
    """Value, low and high of each, empty where unknown."""
    values = [getattr(interval, end, "") for interval in intervals for end in ("value", "low", "high")]
    return ["" if isinstance(value, float) and math.isnan(value) else value for value in values]
