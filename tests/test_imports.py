"""What modules import, beyond the contracts of pyproject.toml: what a stage may know of, and what is loaded early."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import grimp
import pytest

import qdexp
from qdexp.cell import Cell
from qdexp.stages.activations import ActivationsStage
from qdexp.stages.base import Stage
from qdexp.stages.calibration import CalibrationStage
from qdexp.stages.conditions import ConditionsStage
from qdexp.stages.coverage import CoverageStage
from qdexp.stages.curves import CurvesStage
from qdexp.stages.features import FeaturesStage
from qdexp.stages.layers import LayersStage
from qdexp.stages.metric import MetricStage
from qdexp.stages.quantized_samples import QuantizedSamplesStage
from qdexp.stages.running import RunningMetricStage
from qdexp.stages.samples import SamplesStage
from qdexp.stages.size import SizeStage
from qdexp.stages.steps import StepStage
from qdexp.stages.trajectory import TrajectoryStage

SRC = Path(qdexp.__file__).parents[1]
GRAPH = grimp.build_graph("qdexp", include_external_packages=True, cache_dir=None)

INPUTS: dict[type[Stage], set[type[Stage]]] = {
    ConditionsStage: set(),
    TrajectoryStage: {ConditionsStage},
    CalibrationStage: {TrajectoryStage, ConditionsStage},
    StepStage: {CalibrationStage, StepStage},
    CoverageStage: {StepStage, CalibrationStage},
    SizeStage: set(),
    SamplesStage: {ConditionsStage},
    QuantizedSamplesStage: {StepStage, ConditionsStage, SamplesStage},
    CurvesStage: {StepStage, TrajectoryStage, ConditionsStage},
    FeaturesStage: {SamplesStage, QuantizedSamplesStage},
    MetricStage: {SamplesStage, QuantizedSamplesStage, FeaturesStage, CurvesStage, CoverageStage, StepStage, SizeStage},
    RunningMetricStage: {MetricStage, StepStage, ConditionsStage},
    ActivationsStage: {TrajectoryStage, ConditionsStage},
    LayersStage: {StepStage, TrajectoryStage, ConditionsStage},
}
SHARED = {f"qdexp.stages.{name}" for name in ("base", "code", "keys", "quantized", "wiring")}
"""Modules of stages that are no stage."""


@pytest.mark.parametrize("stage", INPUTS, ids=lambda stage: stage.__name__)
def test_a_stage_uses_code_of_its_inputs_only(stage: type[Stage]) -> None:
    reachable, waiting = {stage.__module__} | SHARED, set(INPUTS[stage])
    while waiting:
        one = waiting.pop()
        waiting |= {further for further in INPUTS[one] if further.__module__ not in reachable}
        reachable.add(one.__module__)
    imported = GRAPH.find_modules_directly_imported_by(stage.__module__)
    assert {name for name in imported if name.startswith("qdexp.stages.")} <= reachable


def test_inputs_are_what_stages_read(cell_of: Callable[..., Cell]) -> None:
    for stage in cell_of("metric=[standard,latency]").stages.values():
        assert {type(one) for one in stage.inputs.values()} <= INPUTS[type(stage)]


def test_all_stages_are_looked_at() -> None:
    assert {stage.__module__ for stage in INPUTS} == GRAPH.find_children("qdexp.stages") - SHARED


def test_help_needs_no_torch() -> None:
    """Hydra loads the plugin, and Python the app, before --help is printed."""
    script = (
        "import sys, qdexp.__main__, hydra_plugins.qdexp.sweeper; print([m for m in ('torch', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def _early(module: str, other: str) -> bool:
    """Whether ``module`` imports ``other`` as soon as it is itself imported."""
    path = SRC / module.replace(".", "/")
    lines = (path / "__init__.py" if path.is_dir() else path.with_suffix(".py")).read_text().splitlines()
    found = GRAPH.get_import_details(importer=module, imported=other)
    return any(lines[one["line_number"] - 1].startswith(("import ", "from ")) for one in found)


def test_planning_and_workers_load_neither_lightning_nor_pandas() -> None:
    """They take seconds, and only what learns or shows tables needs them: by late imports, followed no further here."""
    found, pending = set[str](), [f"qdexp.sweep.{name}" for name in ("__main__", "launch", "freeze", "results", "worker")]
    while pending:
        module = pending.pop()
        found.add(module)
        pending += [one for one in GRAPH.find_modules_directly_imported_by(module) - found if _early(module, one)]
    assert "qdexp.sampling.shards" in found
    assert not found & {"pytorch_lightning", "pandas"}


def test_packages_that_are_only_there_say_nothing() -> None:
    """torchao is installed for tests; diffusers loads it, and both log what no user of ours can change."""
    code = "import sys, qdexp, qdexp.models.networks; assert 'torchao' in sys.modules"
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert run.stdout + run.stderr == ""
