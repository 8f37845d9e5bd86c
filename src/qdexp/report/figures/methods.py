"""Methods against each other: bars with intervals, Pareto fronts, errors along the sampler."""

import math
from collections.abc import Sequence

from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator

from qdexp.numbers import Number
from qdexp.report.comparison import Comparison, Line
from qdexp.report.evidence import Evidence
from qdexp.report.figures.style import colour
from qdexp.report.identity import full_precision
from qdexp.report.protocols import protocol_line, rehearsal
from qdexp.statistics.estimate import Interval

BITS = "weight bits"
MARKERS = "os^Dv"
"""Another for every eight colours."""
MOST = 12
"""Lines of a plot that can still be told apart."""
CURVES = {
    "teacher_forced": r"error of each step: $|\epsilon_q - \epsilon|^2 / |\epsilon|^2$",
    "free_running": "error accumulated: $|x_q - x|^2 / |x|^2$",
}


def ladder(comparison: Comparison, _: Evidence) -> Figure | None:
    """Bars of the numbers that are shown so, FID and noise error among them, 95 % intervals on them."""
    return _bars(comparison, comparison.lines)


def calibration(comparison: Comparison, _: Evidence) -> Figure | None:
    """Bars for lines that differ in their calibration strategy, beside full precision; None without any."""
    quantized = [line for line in comparison.lines if not full_precision(line.records[0])]
    alone = len({(line.axes["quant"], line.axes["calib"]) for line in quantized}) == len(quantized)  # nothing else differs
    if (
        len({line.axes["calib"] for line in quantized}) < 2
        or len({line.axes["quantizer"] for line in quantized}) > 1
        or not alone
    ):
        return None
    return _bars(comparison, sorted(quantized, key=lambda line: (line.axes["quant"], line.axes["calib"])), "calib")


def _bars(comparison: Comparison, lines: Sequence[Line], axis: str | None = None) -> Figure | None:
    """Bars of a number; None where none is known, as for full precision alone that is measured without FID."""
    numbers = [number for number in comparison.shown("bars") if any(number.key in line.numbers for line in lines)]
    if not numbers:
        return None
    figure = Figure(figsize=(3.6 * len(numbers), 1.0 + 0.26 * len(lines)))
    panels = figure.subplots(1, len(numbers), sharey=True, squeeze=False)[0]
    for panel, number in zip(panels, numbers, strict=True):
        for place, line in enumerate(lines):
            _bar(panel, place, line.numbers.get(number.key), number)
        panel.set(title=number.title, yticks=range(len(lines)), yticklabels=[_name(line, axis) for line in lines])
        panel.grid(axis="y", visible=False)
        known = [line.numbers[number.key].value for line in lines if number.key in line.numbers]
        values = [value for value in known if value > 0]
        if values and max(values) > 30 * min(values):
            panel.set_xscale("log")
    panels[0].invert_yaxis()
    told = [*rehearsal(record for line in comparison.lines for record in line.records), protocol_line(comparison.protocol)]
    figure.supxlabel(", ".join(told), fontsize=7)
    return figure


def _bar(panel: Axes, place: int, interval: Interval | None, number: Number) -> None:
    if interval is None:
        return
    half = None if math.isnan(interval.half) else number.factor * interval.half
    hue = colour(0 if number.kind == "quality" else 1)
    panel.barh(place, number.factor * interval.value, 0.62, color=hue, alpha=0.85, xerr=half, ecolor="#222222", capsize=2.5)


def _name(line: Line, axis: str | None = None) -> str:
    name = str(line.axes[axis]) if axis else line.name
    bits = f"W{line.axes['weight_bits']}A{line.axes['act_bits']}"
    return name if full_precision(line.records[0]) or bits in name else f"{name} {bits}"


def pareto(comparison: Comparison, _: Evidence) -> Figure | None:
    """The qualities that are shown as bars (FID) against weight bits and costs, a row each, and the front of what nothing beats
    in both."""
    qualities = [number for number in comparison.shown("bars") if number.kind == "quality"]
    lines = [line for line in comparison.lines if all(number.key in line.numbers for number in qualities)]
    if len(lines) < 2 or not qualities:
        return None
    costs = {BITS: [line.axes["weight_bits"] for line in lines]}
    for number in comparison.shown("overview"):
        if number.kind == "cost" and all(number.key in line.numbers for line in lines):
            costs[number.axis or number.title] = [number.factor * line.numbers[number.key].value for line in lines]
    figure = Figure(figsize=(3.3 * len(costs), 0.7 + 2.7 * len(qualities)))
    rows = figure.subplots(len(qualities), len(costs), sharey="row", sharex="col", squeeze=False)
    for number, panels in zip(qualities, rows, strict=True):
        for panel, (label, values) in zip(panels, costs.items(), strict=True):
            dots = _front(panel, values, [line.numbers[number.key] for line in lines], number)
            panel.set(xscale="log")
            subdivided = (1, 2, 5) if max(values) < 50 * min(values) else (1,)
            panel.xaxis.set_major_locator(FixedLocator(sorted(set(values))) if label == BITS else LogLocator(subs=subdivided))
            panel.xaxis.set_major_formatter("{x:g}")
            panel.minorticks_off()
        panels[0].set_ylabel(number.title)
    for panel, label in zip(rows[-1], costs, strict=True):
        panel.set_xlabel(label)
    figure.legend(dots, [_name(line) for line in lines], loc="outside lower center", ncols=4, fontsize=7)
    return figure


def _front(panel: Axes, costs: Sequence[float], found: Sequence[Interval], number: Number) -> list[Artist]:
    """Draws the points, their intervals and their front; returns the points' dots."""
    points = [(cost, number.factor * one.value, number.factor * one.half) for cost, one in zip(costs, found, strict=True)]
    dots: list[Artist] = []
    for index, (cost, value, half) in enumerate(points):
        panel.errorbar(cost, value, None if math.isnan(half) else half, color=colour(index), elinewidth=1)
        dots.append(panel.scatter(cost, value, 22, color=colour(index), marker=MARKERS[index // 8 % len(MARKERS)], zorder=3))
    worse = -1 if number.higher else 1
    best = [(cost, worse * value) for cost, value in front([(cost, worse * value) for cost, value, _ in points])]
    panel.step(*zip(*best, strict=True), where="post", color="#777777", linestyle=(0, (4, 3)), linewidth=1)
    values = [value for _, value, _ in points]
    if min(values) > 0 and max(values) > 10 * min(values):
        panel.set_yscale("log")
    return dots


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
    figure = Figure(figsize=(8.4, 3.2))
    panels = figure.subplots(1, 2)
    for panel, (kind, title) in zip(panels, CURVES.items(), strict=True):
        for index, line in enumerate(lines):
            found = line.records[0]["curves"]
            errors = [error or math.nan for error in found[kind]]  # both walks start from the same noise: no error to draw
            panel.plot(found["timestep"], errors, marker="o", markersize=3, color=colour(index), label=_name(line))
            for t, error in zip(found["timestep"], errors, strict=True):
                if t == 0:
                    panel.plot(t, error, marker="o", markersize=3, color=colour(index), markerfacecolor="white")
        panel.set(title=title, yscale="log")
        panel.invert_xaxis()
    timesteps = lines[0].records[0]["curves"]["timestep"]
    apart = "; hollow: t = 0, which the noise error leaves out" if 0 in timesteps else ""
    figure.supxlabel(f"timestep t of all {len(timesteps)} calls of the sampler, the first on the left{apart}", fontsize=7)
    panels[0].legend()
    return figure
