"""Figures for a paper, each as PDF and PNG, from a comparison and the store behind it."""

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

from matplotlib import rc_context
from matplotlib.figure import Figure

from qdexp import files
from qdexp.report.comparison import Comparison
from qdexp.report.evidence import Evidence
from qdexp.report.figures import inside, methods, samples
from qdexp.report.figures.style import STYLE

Draw = Callable[[Comparison, Evidence], Figure | None]

FIGURES: dict[str, Draw] = {
    "ladder": methods.ladder,
    "calibration": methods.calibration,
    "pareto": methods.pareto,
    "curves": methods.curves,
    "ranges": inside.ranges,
    "shortcuts": inside.shortcuts,
    "layers": inside.layers,
    "samples": samples.grid,
}
"""The figures by file name; a figure for which a study has nothing to show is None."""


MOST = 60
"""Lines of a comparison that figures show: more are not told apart, and thousands have no room in a picture."""


def draw_all(comparison: Comparison, evidence: Evidence, folder: Path) -> list[str]:
    """Writes every figure that the study's first lines have data for into ``folder``, and returns their names."""
    drawn, comparison = [], replace(comparison, lines=comparison.lines[:MOST])
    for name, draw in FIGURES.items():
        with rc_context(STYLE):
            figure = draw(comparison, evidence)
            if figure is not None:
                save(figure, folder / name)
                drawn.append(name)
    return drawn


def save(figure: Figure, path: Path) -> None:
    """Writes ``path``.pdf and ``path``.png, whole."""
    for kind in ("pdf", "png"):
        files.write(path.with_suffix(f".{kind}"), partial(figure.savefig, format=kind))
