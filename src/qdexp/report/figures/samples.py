"""Samples of the methods side by side: a row a method, a column a starting noise."""

import numpy as np
from matplotlib.figure import Figure

from qdexp.report.comparison import Comparison
from qdexp.report.evidence import Evidence

COLUMNS, ROWS = 12, 16


def grid(comparison: Comparison, evidence: Evidence) -> Figure | None:
    """The first images of each line's first record; None where the store holds none. Images of the first line's shape only."""
    rows = evidence.rows_of_images(((line.name, line.records[0]) for line in comparison.lines), COLUMNS)[:ROWS]
    if not rows:
        return None
    figure = Figure(figsize=(8.4, 0.62 * len(rows) + 0.1))
    for panel, (name, images) in zip(figure.subplots(len(rows), 1, squeeze=False)[:, 0], rows, strict=True):
        strip = np.concatenate(list(images.transpose(0, 2, 3, 1)), axis=1)
        panel.imshow(strip if strip.shape[2] == 3 else strip[..., 0], cmap="gray", vmin=0, vmax=255, interpolation="nearest")
        panel.set_ylabel(name, rotation=0, ha="right", va="center")
        panel.set(xticks=[], yticks=[], frame_on=False)
    return figure
