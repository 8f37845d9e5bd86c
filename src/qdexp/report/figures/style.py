"""The style of figures: legible at the width of a column in print and to the colour-blind."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from textwrap import fill
from typing import Any, Literal

from cycler import cycler
from matplotlib.artist import Artist
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import LogLocator, NullLocator

from qdexp.report.comparison import Comparison

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
MARKERS = "osD^v"
"""Markers, taken in turn beside the eight colours: forty lines until a pair of both comes again."""
DASHES: Any = ("-", (0, (4, 2)))
LONGEST = 36
"""Characters of a line of a legend."""


@dataclass(frozen=True)
class Look:
    """The look of one line of a study, the same in every figure.

    Every second line is dashed, has hollow markers and lies on top: the line below is seen through both.
    """

    index: int

    @property
    def colour(self) -> str:
        return f"C{self.index % 8}"

    @property
    def dots(self) -> dict[str, Any]:
        """Options of ``plot`` and ``errorbar`` for markers alone."""
        hollow, marker = self.index % 2, MARKERS[self.index % len(MARKERS)]
        face = {"markersize": 4.5, "markerfacecolor": "none" if hollow else self.colour}
        return {"color": self.colour, "marker": marker, "linestyle": "none", "zorder": 3 + hollow, **face}

    @property
    def line(self) -> dict[str, Any]:
        """Options of ``plot`` for markers that a line joins."""
        return {**self.dots, "linestyle": DASHES[self.index % 2], "linewidth": 1.2}


def looks(comparison: Comparison) -> Mapping[str, Look]:
    """The looks of the lines, by their names."""
    return {line.name: Look(index) for index, line in enumerate(comparison.lines)}


def legend(figure: Figure, entries: Mapping[str, Artist | dict[str, Any]]) -> None:
    """Draw the legend beside the panels, where it hides nothing; ``entries``: an artist, or a line's options, by its name."""
    drawn = [Line2D([], [], **entry) if isinstance(entry, dict) else entry for entry in entries.values()]
    figure.legend(drawn, [fill(name, LONGEST, break_long_words=False) for name in entries], loc="outside right upper")


def logarithmic(panel: Axes, which: Literal["x", "y"], values: Sequence[float]) -> None:
    """Makes an axis logarithmic, with ticks to be read as numbers where these are few; ``values``: what it shows, above 0."""
    panel.set(**{f"{which}scale": "log"})
    axis = panel.xaxis if which == "x" else panel.yaxis
    if max(values) < 300 * min(values):
        axis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axis.set_major_formatter("{x:g}")
        axis.set_minor_locator(NullLocator())
