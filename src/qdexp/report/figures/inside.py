"""Figures of the insides of networks: ranges over the timesteps, the two parts of shortcuts, the error of rounding each
layer."""

import re
from collections.abc import Mapping, Sequence
from itertools import groupby
from math import ceil
from typing import Any

import numpy as np
from matplotlib.axis import Axis
from matplotlib.figure import Figure

from qdexp.report.comparison import Comparison
from qdexp.report.evidence import Evidence
from qdexp.report.figures.style import Look, legend, logarithmic, looks

PARTS = ("deep", "skip")
SHOWN, WORST = 4, 5
"""Layers and shortcuts that are drawn one by one; layers that are named."""
LEVELS = 256
NAMED = 30
"""Parts of a network that can be named beside each other along an axis."""
PART = re.compile(r"[^.]*(\.\d+(?=\.|$))?")
"""The part of the network that a layer's name begins with."""


def _activations(comparison: Comparison, evidence: Evidence) -> dict[str, Any] | None:
    """The activations of the full-precision network from the first cell that has them, and its ``model``."""
    found = ((line.axes["model"], evidence.read_json(line.records[0], "activations")) for line in comparison.lines)
    return next(({"model": model, **one} for model, one in found if one is not None), None)


def parts(names: Sequence[str]) -> list[tuple[str, range]]:
    """The network's parts with their layers' places: ``down_blocks.0``, ``mid_block``, in the order of the layers."""
    found, start = [], 0
    for part, layers in groupby(names, lambda name: PART.match(name).group()):  # type: ignore[union-attr]
        end = start + len(list(layers))
        found.append((part, range(start, end)))
        start = end
    return found


def _name_parts(axis: Axis, names: Sequence[str]) -> None:
    """Names the network's parts along an axis of layers, the largest of those that lie too near to each other."""
    placed: dict[float, str] = {}
    for part, layers in sorted(parts(names), key=lambda one: -len(one[1])):
        middle = (layers[0] + layers[-1]) / 2
        if all(abs(middle - other) >= len(names) / NAMED for other in placed):
            placed[middle] = part
    axis.set_ticks(list(placed), list(placed.values()), fontsize=6.5)
    axis.set_ticks([layers[0] - 0.5 for _, layers in parts(names)], minor=True)
    axis.set_tick_params(which="major", length=0)
    axis.grid(visible=False, which="major")


def ranges(comparison: Comparison, evidence: Evidence) -> Figure | None:
    """Activation ranges over the timesteps: all layers, each against its own widest, and those that move most."""
    found = _activations(comparison, evidence)
    if found is None:
        return None
    names, steps = list(found["ranges"]), found["timestep"]
    spans = np.array([np.subtract(one["high"], one["low"]) for one in found["ranges"].values()])
    shares = spans / spans.max(axis=1, keepdims=True)
    figure = Figure(figsize=(10.4, 4.2))
    whole, single = figure.subplots(1, 2, width_ratios=[1.2, 1])
    image = whole.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    places = range(0, len(steps), ceil(len(steps) / 6))
    whole.set(title=f"{found['model']}: range of each layer's input / its widest", xlabel="timestep t")
    whole.set_xticks(places, [str(steps[place]) for place in places])
    whole.grid(visible=False)
    _name_parts(whole.yaxis, names)
    figure.colorbar(image, ax=whole, fraction=0.04)
    moving = sorted(names, key=lambda name: shares[names.index(name)].min())
    apart = {str(found["ranges"][name]): name for name in reversed(moving)}  # layers that read the same tensor: one of them
    drawn = {name: Look(index).line for index, name in enumerate([name for name in moving if name in apart.values()][:SHOWN])}
    for name, options in drawn.items():
        for end in ("low", "high"):
            single.plot(steps, found["ranges"][name][end], **options)
    single.set(title="those that move most", xlabel="timestep t")
    single.set_xticks([steps[place] for place in places])
    single.invert_xaxis()
    legend(figure, drawn)
    return figure


def shortcuts(comparison: Comparison, evidence: Evidence) -> Figure | None:
    """Histograms of the parts of the most uneven concatenations, with the levels that each has with a scale for both."""
    found = _activations(comparison, evidence)
    if found is None or not found["shortcuts"]:
        return None
    uneven = sorted(found["shortcuts"].items(), key=lambda item: -_apart(item[1]))[:SHOWN]
    figure, named = Figure(figsize=(1.0 + 2.8 * len(uneven), 2.9)), dict[str, Any]()
    for panel, (name, one) in zip(figure.subplots(1, len(uneven), squeeze=False)[0], uneven, strict=True):
        edges = np.linspace(one["low"], one["high"], len(one["parts"][0]["counts"]) + 1)
        whole = max(part["range"][1] for part in one["parts"]) - min(part["range"][0] for part in one["parts"])
        levels = []
        for index, part in enumerate(one["parts"]):
            counts, look = np.array(part["counts"]), Look(index)
            called = PARTS[index] if len(one["parts"]) == 2 else f"part {index + 1}"
            levels.append(f"{called} {round(LEVELS * (part['range'][1] - part['range'][0]) / whole)}")
            options = {"color": look.colour, "linestyle": look.line["linestyle"], "linewidth": 1.2}
            panel.stairs(counts / counts.sum(), edges, **options)
            named[called] = options
        panel.set_title(f"{name}\nlevels with one scale: {', '.join(levels)}", fontsize=7.5)
        panel.set(xlabel="input", yscale="log")
    figure.axes[0].set_ylabel("share of values")
    note = (
        f"{found['model']}: of the {LEVELS} levels of 8 bits, those that a part's range spans where one scale serves all parts"
    )
    figure.supxlabel(f"{note}; split, each part has {LEVELS}", fontsize=7)
    legend(figure, named)
    return figure


def _apart(shortcut: dict[str, Any]) -> float:
    """The ratio of the widths of the two parts."""
    spans = [part["range"][1] - part["range"][0] for part in shortcut["parts"]]
    return float(max(spans) / min(spans)) if min(spans) > 0 else float("inf")


def layers(comparison: Comparison, evidence: Evidence) -> Figure | None:
    """Each layer alone quantized: its output's relative error, and that of the noise prediction; and the worst ones by name."""
    read = {line.name: evidence.read_json(line.records[0], "layers") for line in comparison.lines}
    found = dict([(name, one) for name, one in read.items() if one][: 2 * SHOWN])
    if not found:
        return None
    names = list(dict.fromkeys(layer["name"] for one in found.values() for layer in one))
    figure, drawn = Figure(figsize=(10.4, 5.2)), looks(comparison)
    titles = {"error": "the layer's output", "sensitivity": "the noise prediction"}
    grid = figure.subplots(2, 2, width_ratios=[1.8, 1])
    for (whole, single), (key, title) in zip(grid, titles.items(), strict=True):
        errors = {line: {layer["name"]: layer[key] for layer in one} for line, one in found.items()}
        highest = {name: max(one.get(name, 0.0) for one in errors.values()) for name in names}
        worst = sorted(names, key=lambda name: -highest[name])[:WORST]
        for line, one in errors.items():
            whole.plot([one.get(name) or np.nan for name in names], **drawn[line].dots | {"markersize": 3})
        whole.set(title=f"relative error of {title}, only this layer quantized", yscale="log")
        _name_parts(whole.xaxis, names)
        whole.tick_params(axis="x", labelrotation=90)
        _worst(single, worst, errors, drawn)
    grid[0, 0].tick_params(labelbottom=False)
    grid[1, 0].set_xlabel("layers, in execution order")
    legend(figure, {line: drawn[line].dots for line in found})
    return figure


def _worst(panel: Any, worst: Sequence[str], errors: Mapping[str, dict[str, float]], drawn: Mapping[str, Look]) -> None:
    """The errors of some layers, by their names, the worst on top."""
    for line, one in errors.items():
        known = [(one[name], place) for place, name in enumerate(worst) if one.get(name)]
        if known:
            panel.plot(*zip(*known, strict=True), **drawn[line].dots)
    panel.set_yticks(range(len(worst)), worst, fontsize=6.5)
    panel.set(title=f"the {len(worst)} worst", ylim=(len(worst) - 0.5, -0.5))
    values = [one[name] for one in errors.values() for name in worst if one.get(name)]
    if values and max(values) > 30 * min(values):
        logarithmic(panel, "x", values)
    else:
        panel.set_xlim(left=0)
