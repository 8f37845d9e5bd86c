"""Methods against each other: dots with intervals, Pareto fronts, errors along the sampler."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator

from qdexp.numbers import Number
from qdexp.report.comparison import Comparison, Line, apart
from qdexp.report.evidence import Evidence
from qdexp.report.figures.style import Look, legend, logarithmic, looks
from qdexp.report.identity import full_precision
from qdexp.report.protocols import protocol_line, rehearsal

BITS = "weight bits"
MOST = 12
"""Lines of a plot that can still be told apart."""
ACROSS = 3
"""Pareto figures beside each other."""
CURVES = {
    "teacher_forced": r"error of each step: $|\epsilon_q - \epsilon|^2 / |\epsilon|^2$",
    "free_running": "error accumulated: $|x_q - x|^2 / |x|^2$",
}
FRONT: Any = {"color": "#777777", "linestyle": (0, (1, 1.5)), "linewidth": 1.2}
LAST: Any = {"color": "#777777", "linestyle": (0, (1, 1.5)), "linewidth": 1}


def ladder(comparison: Comparison, _: Evidence) -> Figure | None:
    """The numbers that are shown so, FID and noise error among them, with their 95 % intervals."""
    return _dots(comparison, comparison.lines)


def calibration(comparison: Comparison, _: Evidence) -> Figure | None:
    """Dots for lines that differ in their calibration strategy, beside full precision; None without any."""
    quantized = [line for line in comparison.lines if not full_precision(line.records[0])]
    alone = len({(line.axes["quant"], line.axes["calib"]) for line in quantized}) == len(quantized)  # nothing else differs
    if (
        len({line.axes["calib"] for line in quantized}) < 2
        or len({line.axes["quantizer"] for line in quantized}) > 1
        or not alone
    ):
        return None
    return _dots(comparison, sorted(quantized, key=lambda line: (line.axes["quant"], line.axes["calib"])), "calib")


def _dots(comparison: Comparison, lines: Sequence[Line], axis: str | None = None) -> Figure | None:
    """Dots with intervals of each number; None where none is known, as for full precision alone, measured without FID."""
    numbers = [number for number in comparison.shown("bars") if any(number.key in line.numbers for line in lines)]
    if not numbers:
        return None
    figure, drawn = Figure(figsize=(3.6 * len(numbers), 1.0 + 0.26 * len(lines))), looks(comparison)
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for panel, number in zip(panels, numbers, strict=True):
        values, sure = [], False
        for place, line in enumerate(lines):
            if (interval := line.numbers.get(number.key)) is not None:
                value, half = (number.factor * one for one in (interval.value, interval.half))
                sure |= not math.isnan(half)
                values.append(value)
                panel.errorbar(value, place, xerr=None if math.isnan(half) else half, capsize=2.5, **drawn[line.name].dots)
        panel.set(yticks=range(len(lines)), yticklabels=[_name(line, axis) for line in lines])
        panel.set_title(f"{number.title}, 95 % intervals" if sure else number.title)
        panel.margins(y=0.5 / len(lines))
        positive = [value for value in values if value > 0]
        if positive and max(positive) > 30 * min(positive):
            logarithmic(panel, "x", positive)
            panel.set_xlabel("logarithmic", fontsize=7)
        elif len(positive) == len(values):
            panel.set_xlim(left=0)
    panels[0].invert_yaxis()
    told = [*rehearsal(record for line in comparison.lines for record in line.records), protocol_line(comparison.protocol)]
    figure.supxlabel(", ".join(told), fontsize=7)
    return figure


def _name(line: Line, axis: str | None = None) -> str:
    name = str(line.axes[axis]) if axis else line.name
    bits = f"W{line.axes['weight_bits']}A{line.axes['act_bits']}"
    return name if full_precision(line.records[0]) or bits in name else f"{name} {bits}"


def pareto(comparison: Comparison, _: Evidence) -> Figure | None:
    """The qualities that are shown as dots (FID), a row each, against weight bits and costs, with the front of what nothing
    beats in both; None where no cost tells lines apart (``Comparison.costs``)."""
    qualities = [number for number in comparison.shown("bars") if number.kind == "quality"]
    lines = [line for line in comparison.lines if all(number.key in line.numbers for number in qualities)]
    costs: dict[str, dict[str, float]] = {}
    if apart([line.axes["weight_bits"] for line in lines if not full_precision(line.records[0])]):
        costs[BITS] = {line.name: line.axes["weight_bits"] for line in lines}
    for number in comparison.costs:
        known = {line.name: number.factor * line.numbers[number.key].value for line in lines if number.key in line.numbers}
        if apart(list(known.values())):
            costs[number.axis or number.title] = known
    if not qualities or not costs:
        return None
    columns, drawn = min(ACROSS, len(costs)), looks(comparison)
    each = math.ceil(len(costs) / columns)
    high = max(0.4 + 2.7 * each * len(qualities), 0.6 + 0.17 * len(lines))
    figure = Figure(figsize=(1.6 + 2.9 * columns, high))
    grid = figure.subplots(each * len(qualities), columns, squeeze=False)
    for row, number in enumerate(qualities):
        panels = grid[row * each : (row + 1) * each].ravel()
        for panel, (label, known) in zip(panels, costs.items(), strict=False):
            shown = [line for line in lines if line.name in known]
            _front(panel, [known[line.name] for line in shown], shown, number, drawn)
            values = list(known.values())
            if max(values) > 3 * min(values) > 0:
                logarithmic(panel, "x", values)
            if label == BITS:
                panel.xaxis.set_major_locator(FixedLocator(sorted(set(values))))
            panel.set_xlabel(label, fontsize=8)
            panel.set_ylabel(number.title)
            panel.sharey(panels[0])
        for panel in panels[len(costs) :]:
            panel.remove()
    legend(figure, {**{_name(line): drawn[line.name].dots for line in lines}, "Pareto front": FRONT})
    return figure


def _front(panel: Axes, costs: Sequence[float], lines: Sequence[Line], number: Number, drawn: Mapping[str, Look]) -> None:
    """Draws the lines' points, their intervals and their front."""
    points = []
    for cost, line in zip(costs, lines, strict=True):
        value, half = (number.factor * one for one in (line.numbers[number.key].value, line.numbers[number.key].half))
        panel.errorbar(
            cost, value, None if math.isnan(half) else half, elinewidth=1, label=_name(line), **drawn[line.name].dots
        )
        points.append((cost, value))
    worse = -1 if number.higher else 1
    best = [(cost, worse * value) for cost, value in front([(cost, worse * value) for cost, value in points])]
    panel.step(*zip(*best, strict=True), where="post", label="Pareto front", zorder=1, **FRONT)
    values = [value for _, value in points]
    if min(values) > 0 and max(values) > 10 * min(values):
        logarithmic(panel, "y", values)


def front(points: Sequence[tuple[float, float]]) -> list[tuple[float, float]]:
    """The Pareto front: the points that no other point beats. By the first coordinate."""
    found: list[tuple[float, float]] = []
    for point in sorted(set(points)):
        if not found or point[1] < found[-1][1]:
            found.append(point)
    return found


def curves(comparison: Comparison, _: Evidence) -> Figure | None:
    """The error at every step of the sampler: the step's own (teacher-forced), and accumulated (free-running)."""
    lines = [line for line in comparison.lines if line.records[0].get("curves")][:MOST]
    if not lines:
        return None
    figure, drawn = Figure(figsize=(9.4, 3.2)), looks(comparison)
    panels = figure.subplots(1, 2, sharex=True)
    timesteps = lines[0].records[0]["curves"]["timestep"]
    last = {"t = 0, not in the noise error": LAST} if 0 in timesteps else {}
    for panel, (kind, title) in zip(panels, CURVES.items(), strict=True):
        for line in lines:
            found = line.records[0]["curves"]
            errors = [error or math.nan for error in found[kind]]  # both walks start from the same noise: no error to draw
            panel.plot(found["timestep"], errors, **drawn[line.name].line)
        for options in last.values():
            panel.axvline(0, zorder=0, **options)
        panel.set(title=title, yscale="log")
    panels[0].invert_xaxis()
    figure.supxlabel(f"timestep t of all {len(timesteps)} calls of the sampler, the first on the left", fontsize=7)
    legend(figure, {**{_name(line): drawn[line.name].line for line in lines}, **last})
    return figure
