"""A comparison as a table: for the terminal, as Markdown, as LaTeX (booktabs) and as CSV.

Below each stand n, protocol and extractor, what the intervals are of, which lines are a finding, and what failed. The CSV holds
every number unrounded, with these beside it.
"""

import math
from collections.abc import Sequence
from functools import partial
from itertools import accumulate
from textwrap import wrap

import pandas as pd
from rich.box import SIMPLE_HEAD
from rich.console import Group
from rich.markup import escape
from rich.table import Table
from rich.text import Text

from qdexp.errors import printable
from qdexp.numbers import Place
from qdexp.record import Record
from qdexp.report.comparison import Comparison, measured_with, write_difference, write_number
from qdexp.report.frame import MINUS, intervals, of_comparison
from qdexp.report.protocols import protocol_line, rehearsal
from qdexp.report.rows import bits

NAMES = 2
"""Columns that say what a line is; the others hold numbers, and stand to the right."""
LONGEST = 100
"""Characters of the longest line that tells of a failed cell."""


def brief(comparison: Comparison) -> Place:
    """The place whose numbers the table at the end of a sweep shows."""
    scored = any(number.kind == "quality" and "bars" in number.shown for number in comparison.shown("brief"))
    return "brief" if scored else "alone"


def to_texts(comparison: Comparison, place: Place = "overview") -> pd.DataFrame:
    """The table as text: one row per line, the columns that at least one of them fills, numbers in their own digits."""
    numbers, headline = of_comparison(comparison), comparison.headline
    texts = {"method": numbers["line"], "bits": [bits(line.records[0]) for line in comparison.lines]}
    if (numbers["seeds"] > 1).any():
        texts["seeds"] = numbers["seeds"]
    for number in comparison.shown(place):
        texts[number.title] = map(partial(write_number, number), intervals(numbers, number.key))
        if number == headline:
            differences = intervals(numbers, f"{number.key}{MINUS}")
            texts[f"{number.title} - {comparison.baseline}"] = map(partial(write_difference, number), differences)
    texts["time"] = map(_time, numbers["seconds"])
    return pd.DataFrame({printable(title): list(column) for title, column in texts.items()}).astype(str).map(printable)


def _time(seconds: float) -> str:
    if pd.isna(seconds):
        return "-"
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"


def notes(comparison: Comparison) -> list[str]:
    """The notes below a table, the protocol first."""
    lines = comparison.lines
    records = [*(record for line in lines for record in line.records), *comparison.failed]
    models = {str(record["axes"].get("model")) for record in records}
    said = [", ".join([*(models if len(models) == 1 else ()), *rehearsal(records), protocol_line(comparison.protocol)])]
    said += [line for told in measured_with(records).values() for line in told]
    said += _floors(comparison)
    sure = [line for line in lines if any(not math.isnan(interval.half) for interval in line.numbers.values())]
    if sure:
        seeds = " and, where there are several, the seeds" if any(len(line.records) > 1 for line in sure) else ""
        said.append(f"±: half the width of a 95 % interval over the images (delete-group jackknife){seeds}")
    if not all(line.settled for line in sure):
        said.append("one seed: the interval is over the images alone; another seed or kind of CPU moves what is calibrated too")
    if any(line.differences for line in lines):
        title = "" if comparison.headline is None else f"{comparison.headline.title} "
        said.append(f"{title}differences: 95 % intervals on the same noise, in pairs; one that holds 0 is no finding")
    said += _machines(records)
    if comparison.first and any(line.differences for line in lines):
        said.append(f"no full precision here: compared with the first row, {comparison.baseline} (--baseline NAME: another)")
    if comparison.baseline is not None and comparison.alone:
        said.append(f"no {comparison.baseline} of the same network to compare with: {', '.join(comparison.alone)}")
    return [printable(line) for line in said]


def _machines(records: Sequence[Record]) -> list[str]:
    """Results whose parts come from machines of several kinds."""
    found = {
        f"{role}-{made['key']}": made["machines"]
        for record in records
        for role, made in record.get("stages", {}).items()
        if len(made.get("machines", ())) > 1
    }
    return [f"{entry}: parts of it were made on {' and on '.join(kinds)}; the bits of one result hold for one kind of machine"
            for entry, kinds in found.items()]  # fmt: skip


def _floors(comparison: Comparison) -> list[str]:
    """The floors, which perfect images would score, where a metric has one: the same in all lines."""
    found = {
        number: {number.text(line.numbers[number.key].value) for line in comparison.lines if number.key in line.numbers}
        for number in comparison.numbers
        if number.kind == "floor"
    }
    return [f"{number.title} {' or '.join(sorted(values))}" for number, values in found.items() if values]


def failures(comparison: Comparison) -> list[str]:
    """One line per failed cell: where and why."""
    lines = []
    for record in comparison.failed:
        error = record.get("error", {})
        message = (str(error.get("message", "")).splitlines() or [""])[0]
        line = printable(f"failed: {record['cell']} in {error.get('stage', '?')}: {error.get('type', '?')}: {message}")
        lines.append(line if len(line) <= LONGEST else f"{line[: LONGEST - 1]}…")
    return lines


def to_terminal(comparison: Comparison, width: int, place: Place = "overview") -> Group:
    """The table for rich: the columns for which a terminal of this width has room, and the notes below."""
    texts = to_texts(comparison, place)
    titles, widths = list(texts), [_width(title, list(texts[title]), place >= NAMES) for place, title in enumerate(texts)]
    fitting = max(NAMES, sum(needed <= width for needed in accumulate(one + 2 for one in widths)))
    table = Table(box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for title, least in zip(titles[:NAMES], widths, strict=False):
        table.add_column(escape(title), min_width=least, overflow="fold")
    for title, least in zip(titles[NAMES:fitting], widths[NAMES:], strict=False):
        table.add_column(escape("\n".join(wrap(title, least))), justify="right", width=least, no_wrap=True)
    for row in texts[titles[:fitting]].itertuples(index=False):
        table.add_row(*map(escape, row))
    more = [f"no room here for {', '.join(titles[fitting:])}: table.md has all"] if titles[fitting:] else []
    return Group(table, *map(Text, [*more, *notes(comparison), *failures(comparison)]))


def _width(title: str, texts: Sequence[str], number: bool) -> int:
    """The width of a column: numbers stay whole, names break at a space."""
    return max(map(len, [*title.split(), *(texts if number else " ".join(texts).split())]))


def to_markdown(comparison: Comparison, place: Place = "overview") -> str:
    """The table as Markdown for GitHub; ends with a newline."""
    texts = to_texts(comparison, place)
    failed = [f"- {_in_markdown(failure)}" for failure in failures(comparison)]
    below = [*(f"{_in_markdown(note)}." for note in notes(comparison)), *([""] if failed else []), *failed]
    return "\n".join([markdown(texts, texts.shape[1] - NAMES), "", *below]) + "\n"


def markdown(texts: pd.DataFrame, numbers: int = 0) -> str:
    """A table for GitHub, the last ``numbers`` columns to the right."""
    whole = texts.rename(columns=_in_a_cell).map(_in_a_cell)
    aligned = ["left"] * (texts.shape[1] - numbers) + ["right"] * numbers
    return str(whole.to_markdown(index=False, disable_numparse=True, colalign=aligned))


def _in_a_cell(text: str) -> str:
    return _in_markdown(text).replace("|", "\\|")


def _in_markdown(text: str) -> str:
    """The text as it is read: neither code, nor a link, emphasis or HTML."""
    for sign in ("\\", "`", "*", "]("):
        text = text.replace(sign, f"\\{sign}")
    return printable(text.replace("<", "&lt;"))


def to_latex(comparison: Comparison) -> str:
    """A ``tabular`` for booktabs, the notes as comments above it."""
    texts = to_texts(comparison)
    table = texts.to_latex(index=False, escape=True, column_format="l" * NAMES + "r" * (texts.shape[1] - NAMES))
    return "".join(f"% {note}\n" for note in notes(comparison)) + table.replace("±", r"$\pm$")


def to_csv(comparison: Comparison) -> str:
    """One row per line: axes, every number with its interval, differences, and the protocol."""
    return str(of_comparison(comparison).drop(columns="seconds").map(_no_formula).to_csv(index=False))


def _no_formula(value: object) -> object:
    """A text that a spreadsheet would compute is marked as one."""
    text = printable(value) if isinstance(value, str) else value
    return f"'{text}" if isinstance(text, str) and text.lstrip().startswith(("=", "+", "-", "@")) else text
