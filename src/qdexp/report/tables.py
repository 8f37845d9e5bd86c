"""A comparison as a table: for the terminal, as Markdown, as LaTeX (booktabs) and as CSV.

Below each stand n, protocol and extractor, what the intervals are of, and which lines are a finding. The CSV holds every number
unrounded, with these beside it.
"""

import csv
import io
import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

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
from qdexp.report.table import protocol_line, rehearsal

Form = Callable[[str, str], str]
PARTIAL = ("coverage_macs", "coverage_parameters")
"""Shown where a line has less than all of it."""
SHOWN = ("fid", "kid", "isc", "clip", "psnr", "ssim", "lpips", "noise_error", "size_stored_mb", "gbops", *PARTIAL)
"""The metrics of the table; the CSV and the page have all."""
KNOWN = {metric.key: metric for metric in METRICS}


@dataclass(frozen=True)
class Column:
    """A header, the text of a line, and whether it is a number."""

    header: str
    text: Callable[[Line], str]
    number: bool = True


def columns(comparison: Comparison, form: Form = "{} ± {}".format) -> list[Column]:
    """The columns that at least one line fills."""
    lines = comparison.lines
    several = any(len(line.records) > 1 for line in lines)
    found = [Column("method", lambda line: line.name, False), Column("bits", _bits, False)]
    found += [Column("seeds", lambda line: str(len(line.records)))] if several else []
    for metric in (KNOWN[key] for key in SHOWN):
        values = [line.numbers[metric.key].value for line in lines if metric.key in line.numbers]
        if values and (metric.key not in PARTIAL or min(values) < 1):
            found.append(_measured(metric, form))
        if metric.key == "fid" and any(metric.key in line.differences for line in lines):
            found.append(_compared(metric, comparison.baseline))
    return found


def _measured(metric: Metric, form: Form) -> Column:
    return Column(metric.title, lambda line: write_number(metric, line.numbers.get(metric.key), form))


def _compared(metric: Metric, baseline: str | None) -> Column:
    return Column(f"{metric.title} - {baseline}", lambda line: write_difference(metric, line.differences.get(metric.key)))


def notes(comparison: Comparison) -> list[str]:
    """What must be said with the numbers."""
    records = [record for line in comparison.lines for record in line.records]
    said = [protocol_line(comparison.protocol), *rehearsal(records), *lpips_lines(records)]
    if any(not math.isnan(interval.half) for line in comparison.lines for interval in line.numbers.values()):
        said.append("±: half of a 95 % interval over images (delete-group jackknife) and, where there are several, seeds")
    if any(line.differences for line in comparison.lines):
        said.append("FID differences: 95 % intervals on the same noise, in pairs; one that holds 0 is no finding")
    return said


def to_terminal(comparison: Comparison) -> Table:
    """For rich."""
    caption = escape("\n".join(notes(comparison)))
    table = Table(box=SIMPLE_HEAD, caption=caption, caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    shown = columns(comparison)
    for column in shown:
        widest = max((len(column.text(line)) for line in comparison.lines), default=0) if column.number else None
        table.add_column(column.header, justify="right" if column.number else "left", min_width=widest, overflow="fold")
    for line in comparison.lines:
        table.add_row(*(escape(column.text(line)) for column in shown))
    return table


def to_markdown(comparison: Comparison) -> str:
    """For GitHub; ends with a newline."""
    shown = columns(comparison)
    rows = [[column.header for column in shown], ["---:" if column.number else "---" for column in shown]]
    rows += [[column.text(line).replace("|", "\\|") for column in shown] for line in comparison.lines]
    return "\n".join([*(f"| {' | '.join(row)} |" for row in rows), "", *(f"{note}." for note in notes(comparison))]) + "\n"


def to_latex(comparison: Comparison) -> str:
    """A ``tabular`` for booktabs, the notes as comments above it."""
    shown = columns(comparison, r"{} $\pm$ {}".format)
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
    axes = list(dict.fromkeys(name for line in comparison.lines for name in line.axes))
    protocol = ("hash", "name", "n", "steps", "extractor", "extractor_digest")
    parts = ("", "_low", "_high")
    numbers = [f"{metric.key}{part}" for metric in METRICS for part in parts]
    differences = [f"{key}_minus_baseline{part}" for key in DIFFERENCES for part in parts]
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    axes.remove("seed")
    writer.writerow(["line", "seeds", *axes, *numbers, "baseline", *differences, *(f"protocol_{name}" for name in protocol)])
    for line in comparison.lines:
        measured = _flat(line.numbers.get(metric.key) for metric in METRICS)
        apart = _flat(line.differences.get(key) for key in DIFFERENCES)
        labels = [line.name, len(line.records), *(line.axes.get(name, "") for name in axes)]
        writer.writerow(
            [*labels, *measured, comparison.baseline, *apart, *(comparison.protocol.get(name) for name in protocol)]
        )
    return text.getvalue()


def _flat(intervals: Iterable[object]) -> list[object]:
    """Value, low and high of each, empty where unknown."""
    values = [getattr(interval, end, "") for interval in intervals for end in ("value", "low", "high")]
    return ["" if isinstance(value, float) and math.isnan(value) else value for value in values]


def _bits(line: Line) -> str:
    axes = line.axes
    return f"W{axes['weight_bits']}A{axes['act_bits']}"
