"""The style of figures: legible at the width of a column in print and to the colour-blind."""

from typing import Any

from cycler import cycler

STYLE: Any = {
    "figure.constrained_layout.use": True,
    "figure.dpi": 100,
    "savefig.dpi": 200,
    "font.size": 9,
    "axes.titlesize": 9.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.alpha": 0.25,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "pdf.fonttype": 42,  # text stays text; some publishers refuse other fonts
    "axes.prop_cycle": cycler(color=["#3b6fd4", "#d9692b", "#2a8f62", "#8a55b8", "#c23b5a", "#18879c", "#9a7a14", "#5b6470"]),
}


def colour(index: int) -> str:
    """The colours in turn."""
    return f"C{index % 8}"
