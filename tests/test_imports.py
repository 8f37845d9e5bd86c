"""Imports point down: what a module may know of. Read from the source, so that late imports count too."""

import ast
import subprocess
import sys
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path

import pytest

import qdexp
from qdexp.cell import Cell
from qdexp.stages.activations import ActivationsStage
from qdexp.stages.alignment import AlignmentStage
from qdexp.stages.base import Stage
from qdexp.stages.calibration import CalibrationStage
from qdexp.stages.conditions import ConditionsStage
from qdexp.stages.coverage import CoverageStage
from qdexp.stages.curves import CurvesStage
from qdexp.stages.evaluation import EvaluationStage
from qdexp.stages.fidelity import FidelityStage
from qdexp.stages.layers import LayersStage
from qdexp.stages.perceptual import PerceptualStage
from qdexp.stages.quantized_samples import QuantizedSamplesStage
from qdexp.stages.samples import SamplesStage
from qdexp.stages.size import SizeStage
from qdexp.stages.steps import StepStage
from qdexp.stages.trajectory import TrajectoryStage

SRC = Path(qdexp.__file__).parents[1]
TOP = SRC.parent
ORDER = [
    {"hydra_plugins", "__main__", "cli", "wandb"},
    {"sweep"},
    {"cell"},
    {"stages"},
    {"methods"},
    {"models", "sampling", "calib", "metrics", "recon"},
    {"quant"},
    {"store", "overrides"},
    {"config", "record", "device", "lightning", "meter", "provenance", "zoo", "entries"},
    {"files", "progress", "statistics"},
    {"errors", "environ", "paths", "layout", "permanent", "folding"},
]
"""A part imports from itself and from those further down."""

READERS = {"report", "tracking"}
"""Read records; they know nothing of the machinery, and only the sweep and their own commands know them."""
READ = {"record", "statistics", "errors", "environ", "files", "entries", "layout"}
"""All that they share with the machinery."""

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
    EvaluationStage: {SamplesStage, QuantizedSamplesStage},
    AlignmentStage: {SamplesStage, QuantizedSamplesStage, ConditionsStage},
    FidelityStage: {SamplesStage, QuantizedSamplesStage},
    PerceptualStage: {SamplesStage, QuantizedSamplesStage},
    ActivationsStage: {TrajectoryStage, ConditionsStage},
    LayersStage: {StepStage, TrajectoryStage, ConditionsStage},
}
SHARED = {f"qdexp.stages.{name}" for name in ("base", "code", "keys", "wiring")}
"""Modules of stages that are no stage."""


def module_name(path: Path) -> str:
    parts = path.relative_to(SRC).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


MODULES = {module_name(path): path for path in SRC.rglob("*.py")}


def _names(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


@cache
def imports(path: Path) -> set[str]:
    """The modules that a file imports, anywhere in it: qdexp's own by their full names, others as they are written."""
    found = set()
    for name in _names(ast.parse(path.read_text())):
        own = name if name in MODULES else name.rpartition(".")[0]
        found.add(own if own in MODULES else name)
    return found


def own_imports(path: Path) -> set[str]:
    return {name for name in imports(path) if name in MODULES}


def part(module: str) -> str:
    """The part of qdexp that a module belongs to: quant of qdexp.quant.affine."""
    first, _, rest = module.partition(".")
    return first if first == "hydra_plugins" else rest.partition(".")[0]


PARTS = sorted({part(module) for module in MODULES} - READERS - {""})


def files_of(name: str) -> Iterator[tuple[str, Path]]:
    """The modules of a part; what nothing imports is free to use what it needs: scripts of the zoo, the
    store's command."""
    free = (".zoo.train_", ".store.__main__")
    return (
        (module, path) for module, path in MODULES.items() if part(module) == name and not any(one in module for one in free)
    )


@pytest.mark.parametrize("name", PARTS)
def test_imports_point_down(name: str) -> None:
    (height,) = [level for level, names in enumerate(ORDER) if name in names]
    below = set().union(*ORDER[height + 1 :]) | {name} | (READERS if name in ("sweep", "wandb") else set())
    for module, path in files_of(name):
        wrong = {other for other in own_imports(path) if part(other) not in below}
        assert not wrong, f"{module} imports {wrong}"


@pytest.mark.parametrize("name", sorted(READERS))
def test_readers_of_records_know_nothing_of_the_machinery(name: str) -> None:
    for module, path in files_of(name):
        assert {part(other) for other in own_imports(path)} <= {name, *READ}, module
        assert not {other for other in imports(path) if other.split(".")[0] in ("torch", "hydra", "pytorch_lightning")}, module


def test_analysis_reads_records_and_loads_checkpoints_as_any_user_does() -> None:
    for path in TOP.glob("analysis/*.py"):
        known = {part(other) for other in own_imports(path) if other != "qdexp"}  # qdexp itself: qdexp.load
        measures = {"metrics"} if path.stem == "coverage" else set()  # an experiment of its own, on images
        assert known <= READERS | READ | measures, path


def test_quant_is_pure_torch() -> None:
    for module, path in files_of("quant"):
        roots = {name.split(".")[0] for name in imports(path)} - {"qdexp"} - set(sys.stdlib_module_names)
        assert roots <= {"torch", "diffusers", "safetensors", "greenlet"}, module
        assert {part(other) for other in own_imports(path)} <= {"quant", "errors", "files", "entries", "folding"}, module


def test_nothing_imports_a_script_of_the_zoo() -> None:
    assert not {module for module, path in MODULES.items() if any(".zoo.train_" in name for name in own_imports(path))}


@pytest.mark.parametrize("stage", INPUTS, ids=lambda stage: stage.__name__)
def test_a_stage_uses_code_of_its_inputs_only(stage: type[Stage]) -> None:
    reachable, waiting = {stage.__module__} | SHARED, set(INPUTS[stage])
    while waiting:
        one = waiting.pop()
        waiting |= {further for further in INPUTS[one] if further.__module__ not in reachable}
        reachable.add(one.__module__)
    assert {name for name in own_imports(MODULES[stage.__module__]) if part(name) == "stages"} <= reachable


def test_inputs_are_what_stages_read(cell_of: Callable[..., Cell]) -> None:
    for stage in cell_of().stages.values():
        assert {type(one) for one in stage.inputs.values()} <= INPUTS[type(stage)]


def test_all_stages_are_looked_at() -> None:
    files = {module for module in MODULES if module.startswith("qdexp.stages.")} - SHARED
    assert {stage.__module__ for stage in INPUTS} == files


def test_help_needs_no_torch() -> None:
    """Hydra loads the plugin, and Python the app, before --help is printed."""
    script = (
        "import sys, qdexp.__main__, hydra_plugins.qdexp.sweeper; print([m for m in ('torch', 'wandb') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout == "[]\n"


def test_planning_and_workers_load_neither_lightning_nor_pandas() -> None:
    """They take seconds, and only what learns or shows tables needs them: by late imports, followed no further here."""
    found, pending = set[str](), [f"qdexp.sweep.{name}" for name in ("__main__", "launch", "freeze", "results", "worker")]
    while pending:
        module = pending.pop()
        found.add(module)
        tree = ast.parse(MODULES[module].read_text()) if module in MODULES else ast.Module([], [])
        early = ast.Module([node for node in tree.body if isinstance(node, ast.Import | ast.ImportFrom)], [])
        names = [name if name in MODULES else name.rpartition(".")[0] or name for name in _names(early)]
        pending += [name for name in names if name not in found]
    assert "qdexp.sampling.shards" in found
    assert not {name for name in found if name.split(".")[0] in ("pytorch_lightning", "pandas")}
