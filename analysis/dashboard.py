"""The W&B dashboard of a sweep, as code: a report to read and a workspace to look around in.

    python analysis/dashboard.py ladder --runs outputs/wandb
    python analysis/dashboard.py ladder --runs outputs/wandb --entity me --project qdexp --save

Built without a network; `--save` publishes both and needs it. Every key that a panel names is looked for in the runs' own
files first, since W&B shows an empty panel for one that is not there and says nothing.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import wandb_workspaces.reports.v2 as reports
import wandb_workspaces.workspaces as workspaces

from qdexp.errors import UserError, one_line
from qdexp.numbers import Number, numbers_of, shipped
from qdexp.tracking.log import Run, read
from qdexp.tracking.sync import runs_in

Panel = Any
Key = tuple[str, str]
"""(summary, config or history; the key's name)."""

CURVES = {"teacher_forced": "error of each step alone", "free_running": "error accumulated"}
"""What the curves of qdexp's own are called; another goes by its key."""
SUMS = {"seconds": "seconds", "peak_memory_mb": "peak memory, MB"}
"""What the making of a stage has cost."""
SHARES = {"macs": "MACs by bits", "parameters": "parameters by bits"}
KINDS = ("quality", "fidelity", "cost", "share")
"""Of numbers: those that have a section."""
NOT_AXES = {"cell", "sweep", "row", "record"}
PREFIXES = {"summary_metrics.": "summary", "summary:": "summary", "config:": "config", "config.": "config"}
"""How a specification marks what kind of key follows; history keys stand bare."""


def sections(runs: Sequence[Run]) -> dict[str, list[Panel]]:
    """The panels by section: whatever the runs hold has one.

    Bars are means over the runs of one ``row``, which differ in their seed alone.
    """
    numbers, summaries = numbers_in(runs), sorted({key for run in runs for key in run.summary})
    qualities = [number for number in numbers if number.kind == "quality" and "bars" in number.shown]
    fronts = [
        reports.ScatterPlot(
            title=f"{quality.title} against {cost.title}",
            x=reports.SummaryMetric(cost.key),
            y=reports.SummaryMetric(quality.key),
            log_y=True,
        )
        for quality in qualities
        for cost in numbers
        if cost.kind == "cost" and "overview" in cost.shown
    ]
    shares = [
        _bars(title, [key for key in summaries if key.startswith(f"coverage_{of}_")])
        for of, title in SHARES.items()
        if any(key.startswith(f"coverage_{of}_") for key in summaries)
    ]
    stages = dict.fromkeys(stage for run in runs for stage in run.config.get("record", {}).get("stages", {}))
    spent = [
        _bars(f"{title} of each stage", [key for stage in stages if (key := f"{stage}_{cost}") in summaries])
        for cost, title in SUMS.items()
        if any(f"{stage}_{cost}" in summaries for stage in stages)
    ]
    columns = [reports.ParallelCoordinatesPlotColumn(reports.Config(name)) for name in axes_of(runs)]
    columns += [reports.ParallelCoordinatesPlotColumn(reports.SummaryMetric(one.key), log=True) for one in qualities]
    history = {key for kind, key in logged(runs) if kind == "history"}
    curves = sorted(key for key in history if key.startswith("curves/") and not key.endswith(("/timestep", "/sampler_step")))
    return {
        "Methods": _of_kinds(numbers, ["quality", "fidelity"]),
        "What it costs": _of_kinds(numbers, ["cost"]) + fronts,
        "What is quantized": _of_kinds(numbers, ["share"]) + shares,
        "Steps and other stages": spent,
        "Axes": [reports.ParallelCoordinatesPlot(columns=columns)] if columns else [],
        "Along the sampler": [_curve(key) for key in curves],
        "Samples of the same noise": [reports.MediaBrowser(media_keys=["samples"])] if "samples" in history else [],
        "Other numbers": [_bars(one.title, [one.key]) for one in numbers if one.kind not in KINDS],
    }


def _of_kinds(numbers: Sequence[Number], kinds: Sequence[str]) -> list[Panel]:
    """A panel each, those of the overview first."""
    found = [number for number in numbers if number.kind in kinds]
    return [_bars(one.title, [one.key]) for one in sorted(found, key=lambda one: "overview" not in one.shown)]


def _bars(title: str, keys: Sequence[str]) -> Panel:
    return reports.BarPlot(title=title, metrics=[reports.SummaryMetric(key) for key in keys], groupby=reports.Config("row"))


def _curve(key: str) -> Panel:
    name = key.removeprefix("curves/")
    return reports.LinePlot(title=CURVES.get(name, name), x="curves/timestep", y=[key], log_y=True, smoothing_factor=0)


def axes_of(runs: Sequence[Run]) -> list[str]:
    """What the runs were made of, where it is not the same in all."""
    names = dict.fromkeys(name for run in runs for name in run.config)
    found = [name for name in names if name not in NOT_AXES and not name.startswith(("protocol_", "_"))]
    return [name for name in found if len({repr(run.config.get(name)) for run in runs}) > 1]


def numbers_in(runs: Sequence[Run]) -> list[Number]:
    """What the records behind the runs say of their numbers."""
    held = {key for run in runs for key in run.summary}
    told = [{"metrics": held & shipped().keys(), **run.config.get("record", {})} for run in runs]
    return [number for number in numbers_of(told) if number.key in held]


def report(sweep: str, project: str, entity: str, panels: dict[str, list[Panel]]) -> reports.Report:
    """The report: a heading and a grid a section, of the runs of one sweep."""
    blocks: list[Any] = [reports.P("Made from records: one run a cell. FID depends on n, the reference and the extractor.")]
    for name, drawn in panels.items():
        runs = reports.Runset(name=sweep, filters=f"Config('sweep') = '{sweep}'")
        blocks += [reports.H2(name), reports.PanelGrid(runsets=[runs], panels=drawn)]
    return reports.Report(project=project, entity=entity, title=f"qdexp: {sweep}", blocks=blocks, width="fluid")


def workspace(sweep: str, project: str, entity: str, panels: dict[str, list[Panel]]) -> workspaces.Workspace:
    """The same panels as a saved view, the runs of one row together."""
    settings = workspaces.RunsetSettings(filters=f"Config('sweep') = '{sweep}'", groupby=[workspaces.Config("row")])
    parts = [workspaces.Section(name=name, panels=drawn, is_open=True) for name, drawn in panels.items()]
    return workspaces.Workspace(
        entity=entity, project=project, name=f"qdexp: {sweep}", sections=parts, runset_settings=settings
    )


def keys_of(specification: Any, field: str = "") -> Iterator[Key]:
    """The keys that the panels of a specification name, from W&B's own form of it."""
    if isinstance(specification, dict):
        if specification.get("section") in ("config", "summary"):  # of a filter, or what runs are grouped by
            yield specification["section"], specification["name"].removesuffix(".value")
        for name, value in specification.items():
            yield from keys_of(value, name)
    elif isinstance(specification, list):
        for value in specification:
            yield from keys_of(value, field)
    elif isinstance(specification, str):
        yield from _key(specification, field)


def _key(text: str, field: str) -> Iterator[Key]:
    for prefix, kind in PREFIXES.items():
        if text.startswith(prefix):
            yield kind, text.removeprefix(prefix).removesuffix(".value")
            return
    if field == "group_by":
        yield "config", text.removesuffix(".value")
    elif field in ("media_keys", "metrics") or (field == "x_axis" and text != "_step"):
        yield "history", text


def logged(runs: Sequence[Run]) -> set[Key]:
    """The keys that the runs' files hold."""
    found = {("summary", key) for run in runs for key in run.summary} | {("config", key) for run in runs for key in run.config}
    rows = [row for run in runs for row in run.history]
    return found | {("history", key.partition(".")[0]) for row in rows for key in row}


def read_runs(place: Path, sweep: str) -> list[Run]:
    """The runs in ``place`` that belong to the sweep. Raises UserError where a log is not whole: its keys are not known."""
    runs = []
    for folder in runs_in(place):
        try:
            runs += [read(log) for log in folder.glob("run-*.wandb")]
        except ValueError as error:
            raise UserError(f"{folder}: {error}; remove it and run its sweep again, which writes it anew") from error
    return [run for run in runs if run.config.get("sweep") == sweep]


def main() -> int:
    """Builds, checks and, if asked to, publishes."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sweep")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the offline runs, OUT/wandb")
    parser.add_argument("--entity", default="")
    parser.add_argument("--project", default="qdexp")
    parser.add_argument("--save", action="store_true", help="publish report and workspace (needs the network)")
    args = parser.parse_args()
    runs = read_runs(args.runs, args.sweep)
    if not runs:
        parser.error(f"{args.runs} holds no run of the sweep {args.sweep}")
    known = logged(runs)
    panels = {name: drawn for name, drawn in sections(runs).items() if drawn}
    place = (args.sweep, args.project, args.entity, panels)
    built = [report(*place), workspace(*place)]
    missing = {key for one in built for key in keys_of(one._to_model().model_dump(mode="json")["spec"])} - known
    for kind, key in sorted(missing):
        print(f"no run has the {kind} key {key}: its panel would stay empty")
    if missing:
        return 1
    print(f"{sum(map(len, panels.values()))} panels, every key found in {len(runs)} runs")
    for one in built if args.save else []:
        print(one.save().url)
    return 0


if __name__ == "__main__":
    with one_line():
        sys.exit(main())
