"""What counts as the code behind a result, and which modules that is."""

import ast
import sys
from pathlib import Path

import pytest

import qdexp.stages.wiring  # noqa: F401 - loads all stages
from qdexp import code
from qdexp.stages import keys
from qdexp.stages.activations import ActivationsStage
from qdexp.stages.base import Stage, code_of_stage
from qdexp.stages.calibration import CalibrationStage
from qdexp.stages.conditions import ConditionsStage
from qdexp.stages.quantized_samples import QuantizedSamplesStage
from qdexp.stages.samples import SamplesStage
from qdexp.stages.steps import StepStage
from qdexp.stages.trajectory import TrajectoryStage

CODE = """
from typing import TYPE_CHECKING
from qdexp.files import sha256
if TYPE_CHECKING:
    from torch import Tensor

def scale(x: float, *, bits: int = 8) -> float:
    '''Doubles.'''
    if x > 0:
        print("twice", x)
        return 2 * x  # twice
    if bits > 8:
        raise ValueError(f"{bits} bits are too many")
    assert x < 0, "zero"
    return f(x, bits)
"""


@pytest.mark.parametrize(
    ("old", "new", "counts"),
    [
        ("'''Doubles.'''", "'''Makes it twice as large.'''", False),
        ("    '''Doubles.'''\n", "", False),
        ("# twice", "# 2x", False),
        ("x: float", "x: int", False),
        (" -> float", "", False),
        ("2 * x ", "(2 *  x)", False),
        ("are too many", "are more than 8", False),
        ('print("twice", x)', 'print("2x", x, flush=True)', False),
        (', "zero"', ', "neither"', False),
        ("ValueError", "TypeError", True),
        ("x < 0", "x <= 0", True),
        ("2 * x", "x * 2", True),
        ("x > 0", "x >= 0", True),
        ("bits: int = 8", "bits: int = 4", True),
        ("f(x, bits)", "f(bits, x)", True),
        ("qdexp.files", "qdexp.other", True),
    ],
)
def test_what_counts_as_a_change(old: str, new: str, counts: bool) -> None:
    assert old in CODE
    assert (code.plain(ast.parse(CODE)) != code.plain(ast.parse(CODE.replace(old, new)))) is counts


PACKAGE = {
    "followed/__init__.py": "",
    "followed/start.py": "import json\nimport numpy\nfrom . import near\nfrom typing import TYPE_CHECKING\n"
    "if TYPE_CHECKING:\n    from followed import typed\nelse:\n    from followed import untyped\n"
    "def late():\n    from followed.deep import far\n",
    "followed/near.py": "from followed.start import late\n",
    "followed/typed.py": "",
    "followed/untyped.py": "import profile\n",
    "profile.py": "",
    "followed/unused.py": "",
    "followed/deep/__init__.py": "",
    "followed/deep/far.py": "from qdexp.errors import UserError\nfrom qdexp.quant.affine import quantize\n",
    "followed/table.csv": "1,2\n",
}


@pytest.fixture
def followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    for name, source in PACKAGE.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(source)
    monkeypatch.syspath_prepend(tmp_path)
    for name in [name for name in sys.modules if name.partition(".")[0] in ("followed", "profile")]:
        monkeypatch.delitem(sys.modules, name)
    code._in_library.cache_clear()
    return tmp_path / "followed"


def test_imports_are_followed_late_ones_too_but_not_those_of_a_type_checker(followed: Path) -> None:
    found = code.reached("followed.start")
    assert found.keys() == {
        *("followed", "followed.start", "followed.near", "followed.untyped", "followed.deep", "followed.deep.far"),
        *(f"qdexp.quant.{name}" for name in ("affine", "floats", "granularity", "scales", "scheme")),
        "profile",  # called like one of Python's library
    }
    assert code.reached("followed.start", stop=lambda name: name == "followed.near").keys() == found.keys() - {"followed.near"}


@pytest.mark.parametrize(
    ("file", "counts"),
    [
        ("near.py", True),
        ("deep/far.py", True),
        ("__init__.py", True),
        ("deep/__init__.py", True),
        ("untyped.py", True),
        ("../profile.py", True),
        ("table.csv", True),
        ("typed.py", False),
        ("unused.py", False),
    ],
)
def test_what_is_beside_a_module_counts_where_it_is_read(followed: Path, file: str, counts: bool) -> None:
    before = code.digest("followed.start")
    (followed / file).write_text(f"{(followed / file).read_text()}x = 1\n")
    assert (code.digest("followed.start") != before) is counts


def test_of_installed_packages_the_versions_count_that_the_users_modules_import(
    followed: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = [code.digest(name) for name in ("followed.start", "followed.near", "qdexp.quant.affine")]
    monkeypatch.setattr(code.metadata, "version", lambda name: {"numpy": "0.1"}[name])
    code._version.cache_clear()
    after = [code.digest(name) for name in ("followed.start", "followed.near", "qdexp.quant.affine")]
    code._version.cache_clear()
    assert [one != other for one, other in zip(before, after, strict=True)] == [True, True, False]


@pytest.mark.parametrize("stage", [TrajectoryStage, SamplesStage, ConditionsStage, CalibrationStage])
def test_a_change_of_a_method_redoes_nothing_of_full_precision(stage: type[Stage]) -> None:
    found = code.reached(stage.__module__, _is_stage)
    assert not {name for name in found if name.split(".")[1] in ("quant", "recon")}
    assert any(name.startswith("qdexp.sampling.") for name in found)


LEARNED = {
    "qdexp.quant.gptq",
    "qdexp.quant.adaround",
    "qdexp.recon.walk",
}


@pytest.mark.parametrize(
    ("step", "reads"),
    [
        *((f"qdexp.methods.{name}", LEARNED) for name in ("Gptq", "AdaRound", "LearnScales")),
        ("qdexp.methods.Nearest", {"qdexp.quant.ranges"}),
        ("qdexp.methods.Observe", {"qdexp.quant.ranges"}),
        ("qdexp.methods.SplitShortcuts", {"qdexp.quant.shortcuts"}),
        ("qdexp.methods.Released", {"qdexp.models.released"}),
    ],
)
def test_the_code_of_a_step_is_behind_what_it_makes_and_that_of_others_is_not(step: str, reads: set[str]) -> None:
    found = set(code.reached(StepStage.__module__, _is_stage))
    found |= {name for module in keys.modules_of(step)[-1:] for name in code.reached(module)}
    assert {"qdexp.quant.affine", "qdexp.models", "qdexp.device", "qdexp.methods.base"} | reads <= found
    others = LEARNED | {"qdexp.models.released"}
    assert others & found == others & reads


def test_no_result_depends_on_the_code_of_reports_sweeps_or_trackers() -> None:
    for kind in (*Stage.__subclasses__(), QuantizedSamplesStage):
        parts = {name.split(".")[1] for name in code.reached(kind.__module__, _is_stage) if "." in name}
        assert not parts & {"report", "sweep", "tracking", "cell", "record"}, kind


def _is_stage(module: str) -> bool:
    return module in {kind.__module__ for kind in (*Stage.__subclasses__(), QuantizedSamplesStage)}


def test_a_variety_of_a_stage_has_the_code_of_both() -> None:
    assert code_of_stage(QuantizedSamplesStage)[1:] == code_of_stage(SamplesStage)
    assert len({*code_of_stage(QuantizedSamplesStage), *code_of_stage(ActivationsStage)}) == 3


def test_what_counts_as_without_effect_leads_to_nothing_that_computes() -> None:
    """Otherwise a change there would be in no key."""
    kept = set(code.WITHOUT_EFFECT)
    code.WITHOUT_EFFECT.clear()
    try:
        carried = {name for name in kept if name not in ("qdexp.stages.base", "qdexp.store")}
        parts = {other.split(".")[1] for name in carried for other in code.reached(name) if "." in other}
    finally:
        code.WITHOUT_EFFECT.update(kept)
    assert not parts & {"quant", "recon", "models", "sampling", "calib", "metrics"}
