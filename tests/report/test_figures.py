"""Figures of a real study: what they show is what the comparison and the store hold."""

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib import rc_context
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from study import Study

from qdexp.report import figures, rows
from qdexp.report.comparison import Comparison, compare
from qdexp.report.evidence import Evidence
from qdexp.report.figures import inside, methods, samples
from qdexp.report.figures.style import STYLE, Look


@pytest.fixture(autouse=True)
def style() -> Iterator[None]:
    with rc_context(STYLE):
        yield


@pytest.fixture
def evidence(study: Study) -> Evidence:
    return Evidence(study.out)


@pytest.fixture
def comparison(study: Study, evidence: Evidence) -> Comparison:
    return compare(study.records, evidence)


def labels(figure: Figure, panel: int = 0) -> list[str]:
    figure.draw_without_rendering()
    return [label.get_text() for label in figure.axes[panel].get_yticklabels()]


def entries(figure: Figure) -> list[str]:
    """Of the figure's legend, which hides nothing of any panel."""
    figure.draw_without_rendering()
    (legend,) = figure.legends
    assert not any(panel.get_legend() for panel in figure.axes)
    assert not any(legend.get_window_extent().overlaps(panel.get_window_extent()) for panel in figure.axes)
    return [text.get_text() for text in legend.get_texts()]


def points(panel: Axes) -> dict[str, tuple[float, float]]:
    """Where the dots of a panel stand, by what they are called."""
    found = {}
    for one in panel.containers:
        (dot, *_) = one
        found[str(one.get_label())] = (round(dot.get_xdata()[0], 6), round(dot.get_ydata()[0], 6))
    return found


def test_dots_stand_at_the_numbers_with_their_intervals(comparison: Comparison, evidence: Evidence) -> None:
    figure = methods.ladder(comparison, evidence)
    assert figure is not None
    assert labels(figure) == ["fp", "ptq W4A8", "timestep_aware W4A8", "qdiffusion W4A8"]
    assert figure.axes[0].get_title() == "FID, 95 % intervals"
    for place, (line, drawn) in enumerate(zip(comparison.lines, figure.axes[0].containers, strict=True)):
        dot, _, (interval,) = drawn
        known = line.numbers["fid"]
        assert (dot.get_xdata()[0], dot.get_ydata()[0]) == (pytest.approx(known.value), place)
        (ends,) = interval.get_segments()
        assert ends[:, 0] == pytest.approx([known.low, known.high])


def test_what_spans_orders_of_magnitude_is_dots_on_a_logarithmic_axis(make: Callable[..., Any], tmp_path: Path) -> None:
    """Of a bar there the length would mean nothing."""
    evidence = Evidence(tmp_path)
    records = [make("ptq", {"noise_error": 0.02}), make("qdiffusion", {"noise_error": 0.0002})]
    figure = methods.ladder(compare(records, evidence), evidence)
    assert figure is not None
    fid, error = figure.axes
    assert (fid.get_xscale(), error.get_xscale(), error.get_xlabel()) == ("linear", "log", "logarithmic")
    assert not [*fid.patches, *error.patches]
    assert error.get_title() == "noise error x1000", "it has no interval, and none is promised"


def test_strategies_of_one_quantizer_make_a_figure(study: Study, comparison: Comparison, evidence: Evidence) -> None:
    assert methods.calibration(comparison, evidence) is None  # two quantizers: the strategy is not all that differs
    alike = [record for record in study.records if record["axes"]["quantizer"] in ("search", "none")]
    figure = methods.calibration(compare(alike, evidence), evidence)
    assert figure is not None
    assert labels(figure) == ["last W4A8", "uniform W4A8"]


def test_the_front_is_what_nothing_beats() -> None:
    points = [(4.0, 2.0), (4.0, 3.0), (8.0, 2.5), (8.0, 1.5), (16.0, 1.5), (32.0, 1.0)]
    assert methods.front(points) == [(4.0, 2.0), (8.0, 1.5), (32.0, 1.0)]


def sized(make: Callable[..., Any], *sizes: float) -> list[Any]:
    """Full precision and a method for each size in MB, all of the same bits."""
    methods = ("ptq", "timestep_aware", "reconstruction", "qdiffusion")
    named = zip(methods, sizes, strict=False)
    told = [make(method, {"fid": 9.0 - size, "size_stored_mb": size, "gbops": 11.8}) for method, size in named]
    return [make("fp", {"fid": 1.8, "size_stored_mb": 5.14, "gbops": 358.5}), *told]


def test_a_front_is_drawn_where_quantized_lines_differ_in_a_cost(make: Callable[..., Any], tmp_path: Path) -> None:
    evidence = Evidence(tmp_path)
    alike = compare(sized(make, 0.718, 0.720, 0.722), evidence)
    assert (alike.costs, methods.pareto(alike, evidence)) == ([], None), "that full precision is larger needs no figure"
    apart = compare(sized(make, 0.6, 0.9, 1.4), evidence)
    figure = methods.pareto(apart, evidence)
    assert figure is not None
    assert [(panel.get_xlabel(), panel.get_ylabel()) for panel in figure.axes] == [("stored MB", "FID")]
    expected = {"fp": (5.14, 1.8), "ptq W4A8": (0.6, 8.4), "timestep_aware W4A8": (0.9, 8.1), "reconstruction W4A8": (1.4, 7.6)}
    assert points(figure.axes[0]) == expected
    assert entries(figure) == [*expected, "Pareto front"]


def test_fid_stands_against_latency_where_that_was_measured(make: Callable[..., Any], tmp_path: Path) -> None:
    """One backend beside full precision is enough: what it gains is not known before."""
    evidence = Evidence(tmp_path)
    times = {"fp": 20.0, "ptq": 31.5, "qdiffusion": 8.25}

    def timed(name: str, fid: float) -> Any:
        described = {"title": "ms, one image", "kind": "cost", "axis": "ms of a forward pass, one image"}
        measures = {"latency": {"numbers": {"latency_ms": described}, "made_with": {"machine": "a CPU, 2 threads"}}}
        return make(name, {"fid": fid, "latency_ms": times[name], "gbops": 11.8}, measures=measures)

    comparison = compare([timed("fp", 1.8), timed("ptq", 9.5), timed("qdiffusion", 1.9)], evidence)
    figure = methods.pareto(comparison, evidence)
    assert figure is not None
    (panel,) = figure.axes
    assert (panel.get_xlabel(), panel.get_ylabel()) == ("ms of a forward pass, one image", "FID")
    expected = {"fp": (20.0, 1.8), "ptq W4A8": (31.5, 9.5), "qdiffusion W4A8": (8.25, 1.9)}
    assert points(panel) == expected
    (front,) = (line for line in panel.get_lines() if line.get_label() == "Pareto front")
    assert np.asarray(front.get_xydata()).tolist() == [[8.25, 1.9], [20.0, 1.8]], "ptq is slower than both, and worse"
    assert entries(figure) == [*expected, "Pareto front"]
    assert methods.pareto(compare([timed("fp", 1.8), timed("qdiffusion", 1.9)], evidence), evidence) is not None


def test_lines_that_lie_on_each_other_are_told_apart() -> None:
    looks = [Look(index) for index in range(40)]
    assert len({(look.colour, look.dots["marker"]) for look in looks}) == len(looks)
    below, above = looks[4].line, looks[3].line
    assert (below["linestyle"], above["markerfacecolor"]) == ("-", "none")
    assert above["linestyle"] != "-"
    assert above["zorder"] > below["zorder"], "what lies below is seen through dashes and hollow markers"


def test_curves_leave_out_what_has_none(comparison: Comparison, evidence: Evidence) -> None:
    figure = methods.curves(comparison, evidence)
    assert figure is not None
    lines = figure.axes[1].get_lines()
    assert len(lines) == 3
    drawn = np.asarray(lines[0].get_ydata(), dtype=float)
    assert np.isnan(drawn[0])  # both walks start from the same noise
    assert drawn[1:] == pytest.approx(comparison.lines[1].records[0]["curves"]["free_running"][1:])
    assert entries(figure) == ["ptq W4A8", "timestep_aware W4A8", "qdiffusion W4A8"]
    one, other = figure.axes
    assert one.get_xlim() == other.get_xlim()
    assert one.get_xlim()[0] > one.get_xlim()[1], "the first call on the left"


def test_a_call_at_the_last_timestep_is_marked_and_the_mark_explained(make: Callable[..., Any], tmp_path: Path) -> None:
    curves = {"timestep": [100, 0], "teacher_forced": [0.1, 0.2], "free_running": [0.0, 0.1]}
    evidence = Evidence(tmp_path)
    figure = methods.curves(compare([make("ptq", curves=curves)], evidence), evidence)
    assert figure is not None
    assert entries(figure) == ["ptq W4A8", "t = 0, not in the noise error"]


def test_insides_show_every_layer(comparison: Comparison, evidence: Evidence) -> None:
    ranges, layers, shortcuts = (draw(comparison, evidence) for draw in (inside.ranges, inside.layers, inside.shortcuts))
    assert ranges is not None
    assert layers is not None
    assert shortcuts is not None
    found = evidence.read_json(comparison.lines[1].records[0], "layers")
    (image,) = ranges.axes[0].get_images()
    assert np.asarray(image.get_array()).shape == (len(found), 4)
    (line, *_) = layers.axes[0].get_lines()
    drawn = np.asarray(line.get_ydata(), dtype=float)
    assert np.nan_to_num(drawn).tolist() == [layer["error"] for layer in found]  # a logarithmic axis has no place for 0
    assert line.get_linestyle() == "None", "no line joins layers that have nothing to do with each other"
    assert len(shortcuts.axes) == 4
    assert entries(shortcuts) == ["deep", "skip"]


def test_layers_are_named(comparison: Comparison, evidence: Evidence) -> None:
    found = [evidence.read_json(line.records[0], "layers") for line in comparison.lines[1:]]
    worst = {layer["name"]: max(one[place]["sensitivity"] for one in found) for place, layer in enumerate(found[0])}
    layers, ranges = inside.layers(comparison, evidence), inside.ranges(comparison, evidence)
    assert layers is not None
    assert labels(layers, 3) == sorted(worst, key=lambda name: -worst[name])[:5]
    assert entries(layers) == ["ptq", "timestep_aware", "qdiffusion"]
    assert ranges is not None
    assert {"down_blocks.0", "mid_block", "up_blocks.1"} <= set(labels(ranges))
    assert set(entries(ranges)) <= {layer["name"] for layer in found[0]}


def test_a_layers_name_begins_with_its_part() -> None:
    names = ["conv_in", "down_blocks.0.conv1", "down_blocks.0.conv2", "down_blocks.10.conv", "mid_block.resnets.0.conv1", "3"]
    told = [("conv_in", 1), ("down_blocks.0", 2), ("down_blocks.10", 1), ("mid_block", 1), ("3", 1)]
    assert [(part, len(layers)) for part, layers in inside.parts(names)] == told


def test_samples_have_a_row_a_method(comparison: Comparison, evidence: Evidence) -> None:
    figure = samples.grid(comparison, evidence)
    assert figure is not None
    for panel, line in zip(figure.axes, comparison.lines, strict=True):
        quantized = line.axes["method"] != "fp"
        assert panel.get_ylabel() == (f"{line.name} {rows.bits(line.records[0])}" if quantized else line.name)
    (image,) = figure.axes[0].get_images()
    assert np.asarray(image.get_array()).shape == (28, 12 * 28)


def test_of_thousands_of_lines_the_first_are_drawn(
    comparison: Comparison, evidence: Evidence, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(figures, "FIGURES", {"ladder": methods.ladder})
    monkeypatch.setattr(figures, "MOST", 2)
    monkeypatch.setattr(figures, "save", lambda figure, path: seen.extend(labels(figure)))
    seen: list[str] = []
    assert figures.draw_all(comparison, evidence, tmp_path) == ["ladder"]
    assert seen == ["fp", "ptq W4A8"]


def test_without_a_store_there_is_nothing_to_see_inside(study: Study, comparison: Comparison) -> None:
    empty, before = Evidence(study.out / "elsewhere"), plt.get_fignums()
    for draw in (inside.ranges, inside.layers, inside.shortcuts, samples.grid):
        assert draw(comparison, empty) is None
    assert plt.get_fignums() == before  # nothing is left open
