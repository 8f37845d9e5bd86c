"""A paper's study beside ours: what it reports, what we measured, and every setting that deviates.

The paper's side is a JSON file:

    {"title": "Q-Diffusion", "source": "arXiv 2302.04304",
     "settings": {"recon.weights.iterations": {"paper": 20000, "code": 20000}},
     "deviations": ["references are built from other images"],
     "cells": [{"where": {"model": "ddim_cifar10", "method": "qdiffusion", "quant": "w4a8"},
                "numbers": {"fid": 4.93, "isc": 9.12}, "settings": {}}]}

``where`` are axes of the records, ``settings`` options of the frozen config: those of a cell win over those of the file. A
setting has the value of the paper, of its public code, or of both; ``deviations`` are those that no option tells. Numbers are
the paper's own: reported, never ours.
"""

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, NamedTuple

import pandas as pd

from qdexp.errors import UserError
from qdexp.numbers import Number, numbers_of, shipped
from qdexp.record import Record, flat
from qdexp.report.comparison import Line, write_number
from qdexp.report.identity import full_precision
from qdexp.report.tables import markdown

SIDES = ("paper", "code")
QUANTIZING = ("quant.", "quantizer.", "calib.", "recon.", "trajectory.")
"""Options that say nothing of full precision."""
HEADER = ("what", "reported or published", "ours", "remark")


class Row(NamedTuple):
    """One line of the list: a number or a setting, the paper's side, ours, and what is to be said of the two."""

    what: str
    theirs: str
    ours: str
    remark: str


@dataclass(frozen=True)
class Paper:
    """The numbers that a paper reports, as its file says."""

    title: str
    source: str
    settings: dict[str, dict[str, Any]]
    cells: list[dict[str, Any]]
    deviations: list[str]
    metrics: Mapping[str, Number] = field(default_factory=shipped)

    @classmethod
    def read(cls, path: Path, records: Sequence[Record] = ()) -> "Paper":
        """Raises UserError where the file is missing or is no such list, of numbers that qdexp or the records know."""
        metrics = shipped() | {number.key: number for number in numbers_of(records)}
        try:
            found = json.loads(path.read_text())
            paper = cls(found["title"], found["source"], found.get("settings", {}), found["cells"], found.get("deviations", []))
            settings = [paper.settings, *(cell.get("settings", {}) for cell in paper.cells)]
            whole = all(cell["where"].items() and _numeric(cell["numbers"], metrics) for cell in paper.cells)
            known = all(value and value.keys() <= set(SIDES) for one in settings for value in one.values())
        except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
            raise UserError(f"--reported {path}: {type(error).__name__}: {error}; see qdexp.report.conformance") from error
        if not (whole and known):
            raise UserError(f"--reported {path}: cells need where and numbers, of {', '.join(metrics)}; settings are of paper "
                            f"or code")  # fmt: skip
        return replace(paper, metrics=metrics)

    def rows(self, line: Line) -> list[Row]:
        """The list of a line; empty where the paper has no such cell."""
        cell = next((one for one in self.cells if one["where"].items() <= line.axes.items()), None)
        if cell is None:
            return []
        config = flat(line.records[0]["config"])
        settings = {**self.settings, **cell.get("settings", {})}
        if full_precision(line.records[0]):
            settings = {name: values for name, values in settings.items() if not name.startswith(QUANTIZING)}
        deviations = [row for name, values in settings.items() if (row := _deviation(name, values, config))]
        return [*_numbers(cell["numbers"], line, self.metrics), *deviations]


def _numeric(reported: dict[str, Any], metrics: Mapping[str, Number]) -> bool:
    """Whether these are numbers, at least one, each of a metric that there is."""
    known = reported.keys() <= metrics.keys()
    return bool(reported) and known and all(isinstance(value, int | float) for value in reported.values())


def _numbers(reported: dict[str, float], line: Line, metrics: Mapping[str, Number]) -> list[Row]:
    rows = []
    for metric in (metrics[key] for key in reported):
        value, ours = reported[metric.key] / metric.factor, line.numbers.get(metric.key)
        if ours is None:
            remark = "not measured"
        elif math.isnan(ours.low):
            remark = "no interval"
        else:
            place = "inside" if ours.low <= value <= ours.high else "outside"
            remark = f"{place} our interval" + ("" if line.settled else ", which is over the images alone")
        rows.append(Row(metric.title, f"{metric.text(value)} (reported)", write_number(metric, ours), remark))
    return rows


def _deviation(name: str, values: dict[str, Any], config: dict[str, Any]) -> Row | None:
    """The deviation of our setting; None where it is the paper's and the code's."""
    ours = config.get(name)
    if name in config and all(ours == value for value in values.values()):
        return None
    theirs = ", ".join(f"{values[side]} ({side})" for side in SIDES if side in values)
    sides = [side for side in SIDES if side in values and (name not in config or values[side] != ours)]
    return Row(
        name, theirs, "no such option" if name not in config else str(ours), f"deviates from the {' and the '.join(sides)}"
    )


def to_markdown(paper: Paper, lines: Sequence[Line]) -> str:
    """The lists of all lines that the paper has, a section each. Raises UserError where it has none of them."""
    known = [(line, rows) for line in lines if (rows := paper.rows(line))]
    if not known:
        raise UserError(f"--reported: {paper.title} reports none of these cells")
    parts = [f"# {paper.title} ({paper.source}) and this study"]
    for line, rows in known:
        table = pd.DataFrame(rows, columns=HEADER)
        parts.append(f"## {line.name}\n\n{markdown(table)}")
    if paper.deviations:
        parts.append("Of every cell:\n\n" + "\n".join(f"- {deviation}" for deviation in paper.deviations))
    return "\n\n".join(parts) + "\n"
