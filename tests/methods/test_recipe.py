"""Steps: their order, their options, and how a command line changes, leaves out, exchanges and adds them."""

import inspect
import sys
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields
from pathlib import Path
from typing import Annotated, Any, Literal, get_args, get_origin, get_type_hints

import annotated_types
import pytest
from hydra.utils import instantiate
from omegaconf import OmegaConf

from qdexp import code, methods
from qdexp.cell import Cell
from qdexp.config.checks import checked
from qdexp.errors import UserError
from qdexp.footprint.batches import LEARNING, MOST
from qdexp.methods import recipe
from qdexp.methods.base import Step
from qdexp.paths import conf_folder
from qdexp.quant import ranges
from qdexp.quant.percentile import Percentile
from qdexp.stages.base import Stage

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]
STEPS: list[type[Step]] = [
    kind for name in methods.__all__ if inspect.isclass(kind := getattr(methods, name)) and issubclass(kind, Step)
]
CONCRETE = [kind for kind in STEPS if not inspect.isabstract(kind)]


def wrong(hint: Any) -> Iterator[Any]:
    """Values that a field of this type must not take, read off the type itself."""
    if get_origin(hint) is Annotated:
        base, *bounds = get_args(hint)
        for bound in bounds:
            if isinstance(bound, annotated_types.Gt | annotated_types.Lt):
                yield bound.gt if isinstance(bound, annotated_types.Gt) else bound.lt
            if isinstance(bound, annotated_types.Ge):
                yield float(str(bound.ge)) - 1
            if getattr(bound, "metadata", None) and base is float:
                yield float("inf")
        yield from wrong(base)
        return
    choices = get_args(hint)
    if get_origin(hint) is Literal:
        yield "nonesuch"
    elif type(None) in choices:
        yield from (value for value in wrong(choices[0]) if value is not None)
        return
    elif hint is bool:
        yield "perhaps"
    elif hint in (int, float):
        yield "many"
    elif hint is str:
        yield 3
    yield None


def faults() -> Iterator[Any]:
    for kind in CONCRETE:
        hints = get_type_hints(kind, include_extras=True)
        for field in fields(kind):
            for value in wrong(hints[field.name]):
                yield pytest.param(kind, field.name, value, id=f"{kind.__name__}.{field.name}={value}")


@pytest.mark.parametrize(("kind", "name", "value"), list(faults()))
def test_a_value_that_the_type_of_an_option_excludes_is_named(kind: type[Step], name: str, value: Any) -> None:
    needed = {one.name: "x" for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING}
    with pytest.raises(UserError) as caught:
        checked(kind, {**needed, name: value}, "quantizer.steps.mine")
    text = str(caught.value)
    assert text.startswith(f"quantizer.steps.mine.{name}")
    assert "\n" not in text


def test_the_slots_are_those_of_the_base_file_in_its_order() -> None:
    base = OmegaConf.load(conf_folder() / "quantizer" / "none.yaml")
    assert tuple(base.steps) == recipe.SLOTS
    assert set(base.steps.values()) == {None}


@pytest.mark.parametrize("kind", CONCRETE)
def test_every_step_has_a_docstring_and_defaults_that_are_possible(kind: type[Step]) -> None:
    assert kind.__doc__
    needed = [one.name for one in fields(kind) if one.default is MISSING and one.default_factory is MISSING]
    checked(kind, dict.fromkeys(needed, "x"), "step")


def test_the_defaults_of_what_learns_are_those_of_the_fast_recipe(cell_of: CellOf) -> None:
    fast: Any = OmegaConf.load(conf_folder() / "recon" / "fast.yaml")
    for kind, part in ((methods.AdaRound, fast.weights), (methods.LearnScales, fast.scales)):
        step, shared = kind(), {name: fast[name] for name in ("heldout", "precision", "compile")}
        assert step.batch == MOST[LEARNING]
        told = {**part, **shared}
        if kind is methods.LearnScales:
            assert told.pop("iterations") == 0, "who names the step wants it"
        assert {name: getattr(step, name) for name in told} == told


def slots(cell: Cell) -> list[str]:
    return [one.slot for one in cell.steps]


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        (["method=fp"], []),
        (["method=ptq"], ["weights", "act"]),
        (["quantizer=gptq"], ["weights", "act"]),
        (["method=reconstruction"], ["weights", "act", "scales"]),
        (["method=qdiffusion"], ["split", "weights", "act", "scales"]),
        (["method=qdiffusion", "quant=w4a32"], ["split", "weights"]),
        (["method=qdiffusion", "quant=w32a8"], ["split", "act", "scales"]),
        (["method=qdiffusion", "quantizer.steps.scales=null"], ["split", "weights", "act"]),
        (["method=qdiffusion", "recon.scales.iterations=0"], ["split", "weights", "act"]),
        (["method=qdiffusion", "quantizer.steps.split.scope=off"], ["weights", "act", "scales"]),
        (
            ["method=ptq", "quantizer.steps.scales={_target_: qdexp.methods.LearnScales, heldout: 4}"],
            ["weights", "act", "scales"],
        ),
    ],
)
def test_the_steps_of_a_cell(cell_of: CellOf, arguments: list[str], expected: list[str]) -> None:
    cell = cell_of(*arguments)
    assert slots(cell) == expected
    assert [role for role in cell.stages if role in recipe.SLOTS] == expected


@pytest.mark.parametrize("form", ["{{_target_: {}, heldout: 4}}", "_target_"])
def test_another_class_replaces_the_whole_step(cell_of: CellOf, form: str) -> None:
    """Nothing of the one that stood there before is left; options that the command names beside it are kept."""
    target = "qdexp.methods.Gptq"
    option = f"quantizer.steps.weights={form.format(target)}" if "{" in form else f"quantizer.steps.weights._target_={target}"
    (weights,) = [one.step for one in cell_of("method=reconstruction", option, "quantizer.steps.weights.heldout=3").steps
                  if one.slot == "weights"]  # fmt: skip
    assert isinstance(weights, methods.Gptq)
    assert weights.heldout == 3
    assert not hasattr(weights, "iterations")


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (["=min_max"], ranges.MinMax()),
        (["=norm_search"], ranges.NormSearch(p=2.4)),
        (["=mse"], ranges.NormSearch(p=2.0)),
        (["=percentile"], Percentile(q=99.9)),
        (["=percentile", ".q=99"], Percentile(q=99)),
        (["._target_=qdexp.quant.percentile.Percentile", ".q=98"], Percentile(q=98)),
        (["={_target_: qdexp.quant.percentile.Percentile, q: 97}"], Percentile(q=97)),
        (["._target_=qdexp.quant.ranges.MinMax"], ranges.MinMax()),
    ],
)
@pytest.mark.parametrize("slot", ["weights", "act"])
def test_a_range_estimator_is_named_by_a_word_or_its_class(
    cell_of: CellOf, slot: str, given: list[str], expected: ranges.RangeEstimator
) -> None:
    """Nothing of the one that stood there before is left."""
    cell = cell_of("method=reconstruction", *(f"quantizer.steps.{slot}.range{one}" for one in given))
    (step,) = [one.step for one in cell.steps if one.slot == slot]
    assert instantiate(step.range) == expected  # type: ignore[attr-defined]


def test_a_sweep_over_range_estimators(qdexp: Command, executed: Callable[..., list[str]]) -> None:
    """A word is what it stands for: cells that say the same are one."""
    words = "quantizer.steps.act.range=min_max,mse,percentile"
    code, out, err = qdexp("-m", "method=timestep_aware", words, "quantizer.steps.act.rows=8")
    assert code == 0, err
    made = [entry.rpartition("-")[0] for entry in executed()]
    assert (made.count("weights"), made.count("act")) == (1, 3)
    assert all(name in out for name in ("MinMax", "NormSearch", "Percentile"))
    same = qdexp(
        "-m",
        "method=timestep_aware",
        "quantizer.steps.act.range._target_=qdexp.quant.ranges.MinMax",
        "quantizer.steps.act.rows=8",
    )
    assert same[0] == 0
    assert len(executed()) == len(made)


OWN = """
from dataclasses import dataclass
from typing import Annotated, ClassVar
from annotated_types import Gt
from qdexp.config import WEIGHTS
from qdexp.methods import Step, Work

@dataclass(frozen=True, kw_only=True)
class Shift(Step):
    '''Adds to all biases.'''
    bits: ClassVar = frozenset({WEIGHTS})
    calibrated: ClassVar = False
    by: Annotated[float, Gt(0)] = 1.0

    def apply(self, work: Work) -> None:
        for name, value in work.network.named_parameters():
            if name.endswith("bias"):
                value.data += self.by

class Smooth(Shift):
    precedes: ClassVar = frozenset({WEIGHTS})

class Broken:
    pass
"""


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "own_step.py").write_text(OWN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "own_step", raising=False)


SHIFT = "{_target_: own_step.Shift, before: act, by: 2}"


@pytest.mark.usefixtures("own")
def test_steps_of_ones_own_stand_where_they_say(cell_of: CellOf) -> None:
    """Also before one another, whatever the order on the command line."""
    later = "quantizer.steps.later={_target_: own_step.Shift, before: mine}"
    cell = cell_of("method=ptq", later, f"quantizer.steps.mine={SHIFT}", "quantizer.steps.mine.by=3")
    assert slots(cell) == ["weights", "later", "mine", "act"]
    assert [one.step.by for one in cell.steps[1:3]] == [1.0, 3]  # type: ignore[attr-defined]
    last = cell_of("method=ptq", "quantizer.steps.mine={_target_: own_step.Shift, before: end}")
    assert slots(last) == ["weights", "act", "mine"]


def test_a_slot_may_be_moved(cell_of: CellOf) -> None:
    moved = "quantizer.steps.act.before=weights"
    assert slots(cell_of("quantizer=svdquant", moved)) == ["smooth", "low_rank", "act", "weights"]
    assert slots(cell_of("quantizer=gptq", moved, "quantizer.steps.act._target_=qdexp.methods.Observe")) == ["act", "weights"]
    with pytest.raises(UserError, match=r"steps\.act\.before=act: no such step; .* before: released or "):
        cell_of("quantizer=gptq", "quantizer.steps.act.before=act")


@pytest.mark.usefixtures("own")
def test_a_sweep_over_a_step_computes_it_and_what_follows_and_nothing_before(
    qdexp: Command, executed: Callable[..., list[str]]
) -> None:
    code, _, err = qdexp("-m", "method=ptq", f"quantizer.steps.mine={SHIFT}", "quantizer.steps.mine.by=2,3", "protocol.n=10")
    assert code == 0, err
    made = [entry.rpartition("-")[0] for entry in executed()]
    once = {"weights": 1, "calibration": 1, "mine": 2, "act": 2, "curves": 2, "features": 2, "fid": 2}
    assert {name: made.count(name) for name in once} == once
    assert made.count("trajectory") == 2, "to calibrate and to judge"


@pytest.mark.usefixtures("own")
def test_the_code_of_a_step_is_in_its_key_and_in_no_other(cell_of: CellOf, tmp_path: Path) -> None:
    cell = cell_of("method=ptq", f"quantizer.steps.mine={SHIFT}")
    before = cell.keys
    (tmp_path / "own_step.py").write_text(OWN.replace("+= self.by", "-= self.by"))
    after = cell_of("method=ptq", f"quantizer.steps.mine={SHIFT}").keys
    changed = {role for role in before if before[role] != after[role]}
    assert changed == {"mine", "act", "coverage", "curves", "samples"} | (cell.stages.keys() - cell.made.keys())


def test_a_change_of_one_method_is_in_no_key_of_another() -> None:
    """What every step leads to is the base alone; what reads networks leads to no step at all."""
    stages = {kind.__module__: code.reached(kind.__module__, lambda name: name.startswith("qdexp.stages."))
              for kind in Stage.__subclasses__()}  # fmt: skip
    found = {name for modules in stages.values() for name in modules if name.startswith(("qdexp.methods.", "qdexp.recon."))}
    assert found == {"qdexp.methods.base", "qdexp.recon.result"}
    assert "qdexp.recon.walk" in code.reached("qdexp.methods.blockwise")
    assert not {name for name in code.reached("qdexp.methods.observe") if "recon" in name or "gptq" in name}


BAD = {
    "an option that is not there": (["quantizer.steps.act.rws=4"], ["steps.act.rws: ", "did you mean rows"]),
    "a slot that is not there": (["quantizer.steps.wieghts.range.p=2"], ["steps.wieghts", "did you mean weights"]),
    "a slot without a class": (["quantizer.steps.mine.by=2", "+quantizer.steps.mine.before=act"], ["steps.mine", "_target_"]),
    "no word of a place": (["quantizer.steps.mine={_target_: own_step.Shift}"], ["steps.mine", "before: "]),
    "a place that is not there": (["quantizer.steps.mine={_target_: own_step.Shift, before: acts}"], ["before=acts"]),
    "places in a ring": (
        [
            "quantizer.steps.one={_target_: own_step.Shift, before: two}",
            "quantizer.steps.two={_target_: own_step.Shift, before: one}",
        ],
        ["before=two"],
    ),
    "a class that is not there": (
        ["quantizer.steps.weights._target_=qdexp.methods.Nearst"],
        ["Nearst", "did you mean qdexp.methods.Nearest"],
    ),
    "a module that is not there": (["quantizer.steps.weights._target_=nowhere.Step"], ["nowhere", "PYTHONPATH"]),
    "a class that is no step": (
        ["quantizer.steps.weights._target_=own_step.Broken"],
        ["own_step.Broken", "qdexp.methods.Step"],
    ),
    "a value that cannot be": ([f"quantizer.steps.mine={SHIFT}", "quantizer.steps.mine.by=0"], ["steps.mine.by=0"]),
    "a name that is none": (["quantizer.steps.1st={_target_: own_step.Shift, before: act}"], ["steps.1st"]),
    "the name of a stage": (["quantizer.steps.curves={_target_: own_step.Shift, before: act}"], ["steps.curves"]),
    "weights changed once they are rounded": (
        ["quantizer.steps.mine={_target_: own_step.Smooth, before: act}"],
        ["steps.mine", "before: weights"],
    ),
    "weights rounded twice": (
        ["quantizer.steps.again={_target_: qdexp.methods.Nearest, before: act}"],
        ["steps.again", "weights"],
    ),
    "scales of nothing": (
        ["quantizer.steps.act=null", "quantizer.steps.scales={_target_: qdexp.methods.LearnScales}"],
        ["steps.scales", "slot act"],
    ),
    "weights that no step quantizes": (["quantizer.steps.weights=null"], ["quant.weight_bits=4", "slot weights"]),
    "activations that no step quantizes": (["quantizer.steps.act=null"], ["quant.act_bits=8", "slot act"]),
    "a range that is none": (["quantizer.steps.act.range._target_=torch.nn.Linear"], ["steps.act.range", "RangeEstimator"]),
    "a range of no name": (["quantizer.steps.act.range=percentil"], ["steps.act.range=percentil", "did you mean percentile"]),
    "a percentile that leaves nothing": (
        ["quantizer.steps.act.range=percentile", "quantizer.steps.act.range.q=0.999"],
        ["steps.act.range", "q=0.999 must be above 50"],
    ),
    "a range without a class": (
        ["quantizer.steps.act.range={p: 2}", "~quantizer.steps.act.range._target_"],
        ["steps.act.range"],
    ),
    "a class without apply": (
        ["quantizer.steps.mine={_target_: qdexp.methods.Step, before: act}"],
        ["methods.Step: name a subclass of qdexp.methods.Step that can be made"],
    ),
    "a slot moved to where it cannot be": (
        ["quantizer.steps.split.scope=skip", "quantizer.steps.weights.before=split"],
        ["steps.split", "before: weights"],
    ),
    "no steps at all": (["quantizer.steps=null"], ["quantizer.steps"]),
    "an old name": (["quantizer.weight.range.p=2"], ["quantizer.steps.weights.range.p"]),
    "an old name of the grid": (["quantizer.act.symmetric=true"], ["quant.act.symmetric"]),
    "an old name of split": (["quantizer.split=skip"], ["quantizer.steps.split.scope"]),
}


@pytest.mark.usefixtures("own")
@pytest.mark.parametrize("case", BAD)
def test_what_cannot_be_is_one_line_before_any_work(qdexp: Command, case: str, tmp_path: Path) -> None:
    options, told = BAD[case]
    code, _, err = qdexp("method=timestep_aware", *options)
    assert code == 1
    assert err.startswith("qdexp: ")
    assert err.count("\n") <= 1
    assert all(part in err for part in told), err
    assert not (tmp_path / "out" / "store").exists()
