"""Metrics of cells: a user's own, added later, turned off, refused; and what their keys are made of."""

import json
import re
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from qdexp import code
from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.numbers import Number, shipped
from qdexp.paths import conf_folder
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.figures.methods import curves as curves_figure
from qdexp.report.tables import to_csv, to_markdown
from qdexp.sampling.shards import read_shards
from qdexp.stages import keys
from qdexp.stages.base import Stage
from qdexp.stages.metric import MetricStage
from qdexp.store import Store
from qdexp.store.__main__ import main as store_command
from qdexp.sweep.plan import plan

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]

OWN = """
from dataclasses import dataclass
import torch
from qdexp.metrics.base import FULL_PRECISION, PROMPTS, SAMPLES, Metric
from qdexp.numbers import Number

SCALE = 1.0


@dataclass(frozen=True, kw_only=True)
class Brightness(Metric):
    numbers = (Number("brightness", "brightness, %", shown=("overview", "brief", "bars"), factor=100.0, higher=True,
                      differences=True),)
    at_least: float = 0.0

    def measure(self, material):
        means = [images.float().flatten(1).mean(1) / 255 for images in material.images()]
        return {"brightness": SCALE * torch.cat(means).clamp_min(self.at_least)}

    def check(self, config):
        if not 0 <= self.at_least < 1:
            raise ValueError(f"at_least={self.at_least}: choose 0 to 1")

    def identity(self, config):
        return {"lamp": f"{self.at_least:g} candela"} if self.at_least else {}


@dataclass(frozen=True, kw_only=True)
class Asked(Brightness):
    needs = frozenset({SAMPLES, PROMPTS})


@dataclass(frozen=True, kw_only=True)
class Careless(Metric):
    numbers = (Number("told", "told"),)

    def measure(self, material):
        return {"untold": 1}


@dataclass(frozen=True, kw_only=True)
class Silent(Brightness):
    numbers = ()
"""
ADDED = "+metric.brightness={_target_: own_metric.Brightness}"


@pytest.fixture(autouse=True)
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    path = tmp_path / "own_metric.py"
    path.write_text(OWN)
    monkeypatch.delitem(sys.modules, "own_metric", raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    return path


def records_in(out: Path) -> dict[str, dict[str, Any]]:
    return {path.name: json.loads(path.read_text()) for path in (out / "records").iterdir()}


def test_a_metric_added_later_is_computed_from_the_stored_images(
    qdexp: Command,
    executed: Callable[..., list[str]],
    own_conf: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Of the same cells, whose records gain it; it stays where it is not asked for, and nothing prunes what it is made of."""
    axes, conf, out = ("-m", "method=fp,ptq"), tmp_path / "conf" / "metric", tmp_path / "out"
    conf.mkdir(parents=True)
    (conf / "brightness.yaml").write_text("brightness: {_target_: own_metric.Brightness}\n")
    folders = [f"hydra.searchpath=[file://{own_conf},file://{conf.parent}]"]
    assert qdexp(*axes)[0] == 0
    before, made = records_in(out), executed()
    code, said, err = qdexp(*axes, "metric=[standard,brightness]", *folders)
    assert (code, err) == (0, "")
    after, added = records_in(out), executed()[len(made) :]
    assert [entry.rpartition("-")[0] for entry in added] == ["brightness", "brightness"], "no image is sampled again"
    assert after.keys() == before.keys(), "they are the same cells"
    for name, record in after.items():
        assert record["metrics"].keys() - before[name]["metrics"].keys() == {"brightness"}
        assert {key: record["metrics"][key] for key in before[name]["metrics"]} == before[name]["metrics"]
        assert record["identity"] == before[name]["identity"]
        assert record["costs"]["total"]["seconds"] == pytest.approx(
            sum(cost["seconds"] for stage, cost in record["costs"].items() if stage != "total"), abs=1e-3
        )
    assert "brightness" in said
    assert qdexp(*axes, "metric=[standard,brightness]", *folders)[0] == qdexp(*axes)[0] == 0
    assert records_in(out) == after and executed() == made + added, "nothing is missing, so nothing is written"
    assert store_command(["prune", "--yes", "--out", str(out)]) == 0
    assert "removed" not in capsys.readouterr().out


def test_what_is_missing_for_a_metric_is_planned_and_nothing_else(cell_of: CellOf) -> None:
    cell = cell_of("method=fp")
    cell.run()
    assert plan([cell], Store(cell.out), 1) == []
    more = cell_of("method=fp", ADDED)
    assert [node.stage for node in plan([more], Store(cell.out), 1)] == ["record"]
    assert more.finished() is None and cell.finished() is not None
    more.run()
    assert plan([more], Store(cell.out), 1) == []


def test_values_of_the_images_are_kept_and_give_an_interval(cell_of: CellOf) -> None:
    full, cell = cell_of("method=fp", ADDED), cell_of("method=ptq", ADDED)
    records = [full.run(), json.loads(json.dumps(cell.run()))]
    images = torch.cat(list(read_shards(cell.out / records[1]["artifacts"]["samples"], "images")))
    kept = load_file(cell.out / "store" / cell.stages["brightness"].entry / "images.safetensors")["brightness"]
    assert torch.equal(kept, images.float().flatten(1).mean(1) / 255)
    assert records[1]["metrics"]["brightness"] == kept.double().mean().item()
    comparison = compare(records, Evidence(cell.out))
    (number,) = (number for number in comparison.numbers if number.key == "brightness")
    assert number == Number(
        "brightness", "brightness, %", shown=("overview", "brief", "bars"), factor=100.0, higher=True, differences=True
    )
    line = comparison.lines[1]
    assert line.numbers["brightness"].low < line.numbers["brightness"].value < line.numbers["brightness"].high
    apart = records[1]["metrics"]["brightness"] - records[0]["metrics"]["brightness"]
    assert line.differences["brightness"].value == pytest.approx(apart)
    assert " brightness, % |" in to_markdown(comparison)
    assert "brightness_minus_baseline_low" in to_csv(comparison)
    del sys.modules["own_metric"]
    elsewhere = compare(records, Evidence(cell.out / "nowhere"))
    assert " brightness, % |" in to_markdown(elsewhere), "its code is not needed"


@pytest.mark.parametrize(
    ("option", "message"),
    [
        ("+metric.mine={at_least: 0.5}", r"metric\.mine=.*: name its class or function as _target_"),
        ("+metric.mine={_target_: own_metric.Nothing}", r"metric\.mine\._target_=own_metric\.Nothing: cannot be imported"),
        (
            "+metric.mine={_target_: qdexp.methods.Nearest}",
            r"metric\.mine\.\S+Nearest: name a subclass",
        ),
        (
            "+metric.mine={_target_: qdexp.metrics.base.Metric}",
            r"metric\.mine\.\S+Metric: name a subclass",
        ),
        ("+metric.mine={_target_: own_metric.Silent}", r"metric\.mine\._target_=.*: declares no numbers"),
        (
            "+metric.mine={_target_: own_metric.Brightness, at_most: 1}",
            r"metric\.mine\.at_most: there is no such option",
        ),
        ("+metric.mine={_target_: own_metric.Brightness, at_least: many}", r"metric\.mine\.at_least=many: .*number"),
        ("+metric.mine={_target_: own_metric.Brightness, at_least: 2.0}", r"metric\.mine\.at_least=2.0: choose 0 to 1"),
        ("+metric.samples={_target_: own_metric.Brightness}", r"metric\.samples: a stage of the cell is called so"),
        ("+metric.Mine={_target_: own_metric.Brightness}", r"metric\.Mine: is no name of a metric"),
        ("metric.kid._target_=qdexp.metrics.fid.Fid", r"metric\.kid: gives fid, as metric\.fid does; turn one of the two off"),
    ],
)
def test_a_mistake_is_one_line_before_any_work(cell_of: CellOf, option: str, message: str) -> None:
    drop = ["~metric.kid.seed"] if "fid.Fid" in option else []
    with pytest.raises(UserError, match=f"^{message}") as told:
        cell_of(option, *drop)
    assert "\n" not in str(told.value)


def test_a_number_that_was_not_declared_fails_the_cell(cell_of: CellOf) -> None:
    done = cell_of("method=fp")
    done.run()
    cell = cell_of("method=fp", "+metric.careless={_target_: own_metric.Careless}")
    with pytest.raises(UserError, match=r"own_metric\.Careless: gives untold, which its numbers do not declare"):
        cell.run()
    assert done.finished() is not None, "what was measured stays measured"


def test_a_metric_is_left_out_where_the_cell_has_not_what_it_needs(cell_of: CellOf) -> None:
    assert "asked" not in cell_of("+metric.asked={_target_: own_metric.Asked}").stages, "an unconditional model has no prompts"
    assert not {"ssim", "noise_error", "quantized"} & cell_of("method=fp").stages.keys()
    assert "kid" not in cell_of("metric.kid=null").stages
    assert not cell_of("metric=[]").stages.keys() - cell_of().made.keys()


def test_numbers_measured_with_different_things_are_refused(cell_of: CellOf) -> None:
    one, other = cell_of("method=fp", ADDED), cell_of("method=ptq", ADDED[:-1] + ", at_least: 0.1}")
    with pytest.raises(UserError, match="brightness was measured with different things"):
        compare([cell_of("method=fp", ADDED[:-1] + ", at_least: 0.2}").run(), other.run()], Evidence(one.out))
    found = other.run()
    assert "brightness, %: lamp 0.1 candela." in to_markdown(compare([found], Evidence(one.out)))
    del found["measures"]["brightness"]["made_with"]
    with pytest.raises(UserError, match=r"brightness, %: lamp 0\.2 candela; brightness, %: not said"):
        compare([cell_of("method=fp", ADDED[:-1] + ", at_least: 0.2}").run(), found], Evidence(one.out))


def test_the_noise_error_leaves_out_a_step_at_zero_and_says_so(cell_of: CellOf) -> None:
    """There rounding x_t alone makes another error than anywhere else; the curves have it."""
    cell = cell_of("sampler=ddim", "protocol.steps=4", "method=timestep_aware")
    record = cell.run()
    curves = record["curves"]
    assert curves["timestep"][-1] == 0 and len(curves["teacher_forced"]) == 4
    assert record["metrics"]["noise_error"] == pytest.approx(sum(curves["teacher_forced"][:-1]) / 3)
    table = to_markdown(compare([record], Evidence(cell.out)))
    assert "noise error x1000: mean over 3 of 4 steps, without t = 0." in table
    figure = curves_figure(compare([record], Evidence(cell.out)), Evidence(cell.out))
    assert figure is not None and "4 calls" in figure.get_supxlabel()
    assert "t = 0, not in the noise error" in [text.get_text() for text in figure.legends[0].get_texts()]
    assert [len(panel.get_lines()) for panel in figure.axes] == [2, 2]
    alone = cell_of("sampler=ddim", "protocol.steps=1", "method=timestep_aware", "calib.timesteps=1").run()
    assert alone["metrics"]["noise_error"] == alone["curves"]["teacher_forced"][0], "there is no other"
    assert "made_with" not in alone["measures"]["noise_error"]


def test_the_code_of_a_metric_is_in_its_key_and_in_no_other(cell_of: CellOf, own: Path) -> None:
    before = cell_of(ADDED)
    assert before.keys  # the source is read when a key is asked for
    own.write_text(OWN.replace("SCALE = 1.0", "SCALE = 2.0"))
    after = cell_of(ADDED)
    assert {role for role in before.keys if before.keys[role] != after.keys[role]} == {"brightness"}
    assert cell_of(ADDED[:-1] + ", at_least: 0.5}").key == after.key


def test_no_metric_of_qdexp_leads_to_another() -> None:
    """But to what they are varieties of, and what they share."""
    shared = {"base", "extractor", "extractors", "features", "own", "reference", "scores"}
    generic = {name for name in code.reached(MetricStage.__module__, _is_stage) if name.startswith("qdexp.metrics.")}
    assert generic == {f"qdexp.metrics.{name}" for name in ("base", "extractor", "features")}
    for target in TARGETS:
        (module,) = keys.modules_of(target)[-1:]
        led = {name.rpartition(".")[2] for name in code.reached(module) if name.startswith("qdexp.metrics.")}
        allowed = shared | {module.rpartition(".")[2]} | ({"dinov2", "fid"} if "dinov2" in module else set())
        assert led <= allowed, target


CONF = conf_folder() / "metric"
TARGETS = [target for path in CONF.glob("*.yaml") for target in re.findall(r"_target_: ([\w.]+)", path.read_text())]


def _is_stage(module: str) -> bool:
    return module in {kind.__module__ for kind in Stage.__subclasses__()}


def test_numbers_are_read_off_the_source_as_the_classes_declare_them() -> None:
    from hydra.utils import get_object

    declared = [number for target in TARGETS for number in get_object(target).numbers]
    assert shipped() == {number.key: number for number in declared}
    assert len(declared) == len(shipped()) > 17
    for number in declared:
        assert Number.of(number.key, json.loads(json.dumps(number.described()))) == number
    assert Number.of("new", {"title": "New", "colour": "red"}) == Number("new", "New"), "of a later version"
