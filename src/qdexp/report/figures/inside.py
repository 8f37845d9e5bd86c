"""Figures of the insides of networks: ranges over the timesteps, the two parts of shortcuts, the error of rounding each
layer."""

from typing import Any

import numpy as np
from matplotlib.figure import Figure

from qdexp.report.comparison import Comparison
from qdexp.report.evidence import Evidence
from qdexp.report.figures.style import colour

PARTS = ("deep", "skip")
SHOWN = 4
"""Layers and shortcuts that are drawn one by one."""
LEVELS = 256


def _activations(comparison: Comparison, evidence: Evidence) -> dict[str, Any] | None:
    """The activations of the full-precision network from the first cell that has them, and its ``model``."""
    found = ((line.axes["model"], evidence.read_json(line.records[0], "activations")) for line in comparison.lines)
    return next(({"model": model, **one} for model, one in found if one is not None), None)


def ranges(comparison: Comparison, evidence: Evidence) -> Figure | None:
    """Activation ranges over the timesteps: all layers, each against its own widest, and those that move most."""
    found = _activations(comparison, evidence)
    if found is None:
        return None
    names, steps = list(found["ranges"]), found["timestep"]
    spans = np.array([np.subtract(one["high"], one["low"]) for one in found["ranges"].values()])
    shares = spans / spans.max(axis=1, keepdims=True)
    figure = Figure(figsize=(8.4, 4.2))
    whole, single = figure.subplots(1, 2, width_ratios=[1.2, 1])
    image = whole.imshow(shares, aspect="auto", cmap="viridis", vmin=0, vmax=1)
    places = range(0, len(steps), max(1, len(steps) // 6))
    whole.set(
        title=f"{found['model']}: range of each layer's input / its widest",
        xlabel="timestep t",
        ylabel="layer, in execution order",
    )
    whole.set_xticks(places, [str(steps[place]) for place in places])
    whole.grid(visible=False)
    figure.colorbar(image, ax=whole, fraction=0.04)
    moving = sorted(names, key=lambda name: shares[names.index(name)].min())
    apart = {str(found["ranges"][name]): name for name in reversed(moving)}  # layers that read the same tensor: one of them
    for index, name in enumerate([name for name in moving if name in apart.values()][:SHOWN]):
        one = found["ranges"][name]
        single.fill_between(steps, one["low"], one["high"], color=colour(index), alpha=0.35, label=name)
    single.set(title="inputs that move most, smallest to largest value", xlabel="timestep t")
    single.invert_xaxis()
    single.legend(fontsize=6.5)
    return figure


def shortcuts(comparison: Comparison, evidence: Evidence) -> Figure | None:
    """Histograms of the parts of the most uneven concatenations, with the levels that each has with a scale for both."""
    found = _activations(comparison, evidence)
    if found is None or not found["shortcuts"]:
        return None
    uneven = sorted(found["shortcuts"].items(), key=lambda item: -_apart(item[1]))[:SHOWN]
    figure = Figure(figsize=(3.2 * len(uneven), 2.8))
    for panel, (name, one) in zip(figure.subplots(1, len(uneven), squeeze=False)[0], uneven, strict=True):
        edges = np.linspace(one["low"], one["high"], len(one["parts"][0]["counts"]) + 1)
        whole = max(part["range"][1] for part in one["parts"]) - min(part["range"][0] for part in one["parts"])
        for index, part in enumerate(one["parts"]):
            counts = np.array(part["counts"])
            levels = round(LEVELS * (part["range"][1] - part["range"][0]) / whole)
            label = f"{PARTS[index] if len(one['parts']) == 2 else index + 1}: {levels} of {LEVELS} levels"
            panel.stairs(counts / counts.sum(), edges, color=colour(index), fill=True, alpha=0.4, label=label)
        panel.set(title=name, xlabel="input", yscale="log")
        panel.legend(fontsize=6.5)
    figure.axes[0].set_ylabel("share of values")
    note = f"{found['model']}: levels of a part's range when both share a scale; split, each has all"
    figure.supxlabel(note, fontsize=7)
    return figure


def _apart(shortcut: dict[str, Any]) -> float:
    """The ratio of the widths of the two parts."""
    spans = [part["range"][1] - part["range"][0] for part in shortcut["parts"]]
    return float(max(spans) / min(spans)) if min(spans) > 0 else float("inf")


def layers(comparison: Comparison, evidence: Evidence) -> Figure | None:
    """Each layer alone quantized: its output's relative error, and that of the noise estimate."""
    found = [(line.name, evidence.read_json(line.records[0], "layers")) for line in comparison.lines]
    drawn = [(name, one) for name, one in found if one][: 2 * SHOWN]
    if not drawn:
        return None
    figure = Figure(figsize=(8.4, 4.4))
    titles = {"error": "relative error of the layer's output", "sensitivity": "relative error of the noise estimate"}
    for panel, (key, title) in zip(figure.subplots(2, 1, sharex=True), titles.items(), strict=True):
        for index, (name, one) in enumerate(drawn):
            values = [layer[key] or np.nan for layer in one]
            panel.plot(values, marker="o", markersize=2.5, linewidth=0.6, color=colour(index), label=name)
        panel.set(title=f"{title}, only this layer quantized", yscale="log")
    figure.axes[0].legend(ncols=4)
    figure.axes[1].set_xlabel("layer, in execution order")
    return figure
