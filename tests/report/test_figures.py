"""Figures of a real study: what they show is what the comparison and the store hold."""

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.figure import Figure
from study import Study

from qdexp.report import rows
from qdexp.report.comparison import Comparison, compare
from qdexp.report.evidence import Evidence
from qdexp.report.figures import inside, methods, samples


@pytest.fixture
def evidence(study: Study) -> Evidence:
    return Evidence(study.out)


@pytest.fixture
def comparison(study: Study, evidence: Evidence) -> Comparison:
    return compare(study.records, evidence)


def labels(figure: Figure, panel: int = 0) -> list[str]:
    figure.draw_without_rendering()
    return [label.get_text() for label in figure.axes[panel].get_yticklabels()]


def test_bars_are_as_long_as_the_numbers(comparison: Comparison, evidence: Evidence) -> None:
    figure = methods.ladder(comparison, evidence)
    assert figure is not None
    assert labels(figure) == ["fp", "ptq W4A8", "timestep_aware W4A8", "qdiffusion W4A8"]
    bars = [bar.get_width() for bar in figure.axes[0].patches]  # type: ignore[attr-defined]
    assert bars == pytest.approx([line.numbers["fid"].value for line in comparison.lines])


def test_strategies_of_one_quantizer_make_a_figure(study: Study, comparison: Comparison, evidence: Evidence) -> None:
    assert methods.calibration(comparison, evidence) is None  # two quantizers: the strategy is not all that differs
    alike = [record for record in study.records if record["axes"]["quantizer"] in ("search", "none")]
    figure = methods.calibration(compare(alike, evidence), evidence)
    assert figure is not None
    assert labels(figure) == ["last W4A8", "uniform W4A8"]


def test_the_front_is_what_nothing_beats() -> None:
    points = [(4.0, 2.0), (4.0, 3.0), (8.0, 2.5), (8.0, 1.5), (16.0, 1.5), (32.0, 1.0)]
    assert methods.front(points) == [(4.0, 2.0), (8.0, 1.5), (32.0, 1.0)]


def test_curves_leave_out_what_has_none(comparison: Comparison, evidence: Evidence) -> None:
    figure = methods.curves(comparison, evidence)
    assert figure is not None
    lines = figure.axes[1].get_lines()
    assert len(lines) == 3
    drawn = np.asarray(lines[0].get_ydata(), dtype=float)
    assert np.isnan(drawn[0])  # both walks start from the same noise
    assert drawn[1:] == pytest.approx(comparison.lines[1].records[0]["curves"]["free_running"][1:])


def test_insides_show_every_layer(comparison: Comparison, evidence: Evidence) -> None:
    ranges, layers, shortcuts = (draw(comparison, evidence) for draw in (inside.ranges, inside.layers, inside.shortcuts))
    assert ranges is not None
    assert layers is not None
    assert shortcuts is not None
    found = evidence.read_json(comparison.lines[1].records[0], "layers")
    (image,) = ranges.axes[0].get_images()
    assert np.asarray(image.get_array()).shape == (len(found), 4)
    drawn = np.asarray(layers.axes[0].get_lines()[0].get_ydata(), dtype=float)
    assert np.nan_to_num(drawn).tolist() == [layer["error"] for layer in found]  # a logarithmic axis has no place for 0
    assert len(shortcuts.axes) == 4


def test_samples_have_a_row_a_method(comparison: Comparison, evidence: Evidence) -> None:
    figure = samples.grid(comparison, evidence)
    assert figure is not None
    for panel, line in zip(figure.axes, comparison.lines, strict=True):
        quantized = line.axes["method"] != "fp"
        assert panel.get_ylabel() == (f"{line.name} {rows.bits(line.records[0])}" if quantized else line.name)
    (image,) = figure.axes[0].get_images()
    assert np.asarray(image.get_array()).shape == (28, 12 * 28)


def test_without_a_store_there_is_nothing_to_see_inside(study: Study, comparison: Comparison) -> None:
    empty, before = Evidence(study.out / "elsewhere"), plt.get_fignums()
    for draw in (inside.ranges, inside.layers, inside.shortcuts, samples.grid):
        assert draw(comparison, empty) is None
    assert plt.get_fignums() == before  # nothing is left open
