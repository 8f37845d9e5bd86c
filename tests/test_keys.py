"""Option by option: the stages whose results it changes, and no others, get a new key."""

import json
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from qdexp import device
from qdexp.cell import Cell
from qdexp.metrics import reference
from qdexp.metrics.extractors import EXTRACTORS, FASHION_CNN
from qdexp.stages import keys
from qdexp.stages.keys import identity

CellOf = Callable[..., Cell]

FEATURES = {"features_fashion-cnn", "fid", "kid", "isc", "precision_recall"}
SEEN = FEATURES | {"distance", "ssim"}
AFTER = {"coverage", "curves", "samples", "noise_error", "sizes", "quantized"} | SEEN
ACT = {"act"} | AFTER
WEIGHTS = {"weights"} | ACT
CALIBRATION = {"calibration"} | ACT
TRAJECTORY = {"trajectory"} | CALIBRATION
IMAGES = {"full_precision", "samples"} | SEEN
HELDOUT = {"heldout", "curves", "noise_error"}
ALL = TRAJECTORY | WEIGHTS | IMAGES | HELDOUT
NONE: set[str] = set()

OPTIONS = {
    "calib=last": CALIBRATION,
    "calib.timesteps=3": CALIBRATION,
    "calib.rows=5": CALIBRATION,
    "calib.strategy._target_=qdexp.calib.strategies.normal": CALIBRATION,
    "calib.name=other": NONE,
    "quant.weight_bits=3": WEIGHTS,
    "quant.act_bits=4": ACT,
    "quant.softmax_bits=16": ACT,
    "quant.first_last_bits=4": WEIGHTS,
    "quant.first_act_bits=16": ACT,
    "quant.layers={conv_in: {weight_bits: 4}}": WEIGHTS,
    "quantizer=linear": WEIGHTS,
    "quant.weight.granularity=per_tensor": WEIGHTS,
    "quant.weight.symmetric=true": WEIGHTS,
    "quantizer.steps.weights.range.p=2": WEIGHTS,
    "quant.act.symmetric=true": ACT,
    "quantizer.steps.act.rows=4": ACT,
    "quantizer.name=other": NONE,
    "recon=published": NONE,
    "recon.heldout=2": NONE,
    "recon.weights.rate=0.5": NONE,
    "recon.compile=true": NONE,
    "protocol.n=21": IMAGES,
    "protocol.pixels=truncate": IMAGES,
    "protocol.noise_seed=1": IMAGES | HELDOUT,
    "protocol.heldout=9": HELDOUT,
    "protocol.steps=5": ALL - {"weights"},
    "protocol.scheduler.solver_order=1": ALL - {"weights"},
    "protocol.name=other": NONE,
    "trajectory.samples=17": TRAJECTORY,
    "seed=1": TRAJECTORY | WEIGHTS,
    "sampling.batch=7": ALL,
    "sampling.channels_last=false": ALL,
    "model.schedule.beta_end=0.03": ALL,
    "+model.network.norm_eps=1e-4": ALL,
    "model.name=other": NONE,
    "method=timestep_aware": NONE,
    "out=elsewhere": NONE,
    "sweep=other": NONE,
    "tracker=wandb": NONE,
    "device=auto": NONE,
}


SCALES = {"scales"} | AFTER
OBSERVED = {"act"} | SCALES
LEARNED = {"weights"} | OBSERVED
SPLIT = {"split"} | LEARNED
LEARNING_OPTIONS = {
    "quant.act_bits=4": OBSERVED,
    "quant.softmax_bits=16": OBSERVED,
    "quant.layers={conv_in: {act_bits: 4}}": OBSERVED,
    "quant.act.symmetric=true": OBSERVED,
    "quantizer.steps.act.rows=4": OBSERVED,
    "recon.scales.iterations=3": SCALES,
    "recon.scales.rate=0.5": SCALES,
    "recon.scales.power=3": SCALES,
    "quant.weight_bits=3": LEARNED,
    "quant.first_last_bits=4": LEARNED,
    "quant.layers={conv_in: {act_bits: 4, weight_bits: 4}}": LEARNED,
    "quantizer.steps.split.scope=skip+conv1": SPLIT,
    "quantizer.steps.weights.range.p=2": LEARNED,
    "quant.weight.symmetric=true": LEARNED,
    "recon.batch=3": LEARNED,
    "recon.heldout=3": LEARNED,
    "recon.weights.iterations=5": LEARNED,
    "recon.weights.rate=0.5": LEARNED,
    "recon.weights.regulariser=1": LEARNED,
    "recon.weights.start=nearest": LEARNED,
    "recon.weights.warmup=0.5": LEARNED,
    "recon.weights.beta=[10,2]": LEARNED,
    "recon.weights.balanced=false": LEARNED,
    "recon.name=other": NONE,
    "memory={device_gb:0,host_gb:0.001,scratch:/tmp}": NONE,
    "recon.precision=bfloat16": LEARNED,
    "recon.precision=float32": NONE,
    "recon.compile=true": LEARNED,
    "calib.rows=5": {"calibration"} | LEARNED,
    "seed=1": {"trajectory", "calibration"} | SPLIT,
    "sampling.batch=7": ALL | SPLIT,
    "protocol.n=21": IMAGES,
}


def changed(one: Cell, other: Cell) -> set[str]:
    """The stages whose keys differ."""
    assert one.stages.keys() == other.stages.keys()
    return {name for name in one.stages if one.stages[name].key != other.stages[name].key}


@pytest.fixture(scope="module")
def _composed() -> dict[tuple[str, ...], Cell]:
    return {}


@pytest.fixture
def once(cell_of: CellOf, _composed: dict[tuple[str, ...], Cell]) -> CellOf:
    """``cell_of``, composed once for all tests of this file: what a key is made of is not changed by who asks for it."""

    def cell(*arguments: str) -> Cell:
        if arguments not in _composed:
            _composed[arguments] = cell_of(*arguments)
        return _composed[arguments]

    return cell


@pytest.mark.parametrize(("option", "expected"), OPTIONS.items())
def test_option(once: CellOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, option: str, expected: set[str]) -> None:
    monkeypatch.chdir(tmp_path)
    if option == "device=auto" and torch.cuda.is_available():
        expected = ALL
    assert changed(once(), once(option)) == expected


@pytest.mark.parametrize(("option", "expected"), LEARNING_OPTIONS.items())
def test_option_of_what_is_learned(once: CellOf, option: str, expected: set[str]) -> None:
    assert changed(once("method=qdiffusion"), once("method=qdiffusion", option)) == expected


def test_all_activation_bits_share_one_rounding(cell_of: CellOf) -> None:
    widths = ("w4a32", "w4a8", "w4a6", "w4a4")
    keys = {cell_of("method=qdiffusion", f"quant={quant}").stages["weights"].key for quant in widths}
    assert len(keys) == 1
    assert cell_of("method=reconstruction", "quant=w4a8").stages["weights"].key not in keys, "nothing is split there"


def test_rounding_without_iterations_does_not_mind_their_arithmetic(cell_of: CellOf) -> None:
    assert cell_of("quantizer=gptq").key == cell_of("quantizer=gptq", "recon.compile=true").key


@pytest.mark.parametrize("option", ["seed=1", "quant=w8a8", "calib=last", "trajectory.samples=17"])
def test_full_precision_depends_on_nothing_of_quantization(once: CellOf, option: str) -> None:
    assert once("method=fp").key == once("method=fp", option).key


@pytest.mark.parametrize("option", ["protocol.heldout=9", "protocol.extractor=none"])
def test_a_cell_under_another_protocol_is_another_though_its_images_are_the_same(once: CellOf, option: str) -> None:
    one, other = once("method=fp"), once("method=fp", option)
    assert one.stages["samples"].key == other.stages["samples"].key
    assert one.key != other.key


@pytest.mark.parametrize("option", ["metric.fid=null", "metric.kid.seed=3", "metric=[]"])
def test_a_cell_is_the_same_whatever_is_measured_of_it(once: CellOf, option: str) -> None:
    one, other = once("seed=1"), once("seed=1", option)
    assert one.keys != other.keys
    assert (one.key, one.name, one.identity) == (other.key, other.name, other.identity)


def test_full_precision_images_are_those_that_others_are_compared_with(once: CellOf) -> None:
    keys = {name: stage.key for name, stage in once("method=ptq").stages.items()}
    assert once("method=fp").stages["samples"].key == keys["full_precision"] != keys["samples"]


def test_the_identity_leaves_out_the_seed_alone(cell_of: CellOf, once: CellOf, own_conf: Path, tmp_path: Path) -> None:
    base, other = once("method=qdiffusion"), once("method=qdiffusion", "seed=1")
    assert other.identity == base.identity == base.key
    assert other.key != base.key
    both = ("method=qdiffusion", "quant.weight_bits=3")
    assert once(*both, "seed=1").identity == once(*both).identity
    others = [option for option, expected in LEARNING_OPTIONS.items() if expected and option != "seed=1"]
    identities = {once("method=qdiffusion", option).identity for option in others}
    assert len(identities | {base.identity}) == len(others) + 1
    weights = load_file(own_conf / "tiny.safetensors")
    save_file(weights, tmp_path / "weights.safetensors")
    cell = cell_of("method=qdiffusion", "seed=1", f"model.weights={tmp_path}/weights.safetensors")
    assert cell.identity == base.identity
    weights["conv_out.bias"] += 1e-6
    save_file(weights, tmp_path / "weights.safetensors")
    assert cell_of("method=qdiffusion", f"model.weights={tmp_path}/weights.safetensors").identity != base.identity


def test_weights_count_by_content_not_by_name(cell_of: CellOf, own_conf: Path, tmp_path: Path) -> None:
    weights = load_file(own_conf / "tiny.safetensors")
    save_file(weights, tmp_path / "moved.safetensors")
    weights["conv_out.bias"] += 1e-6
    save_file(weights, tmp_path / "finetuned.safetensors")
    base = cell_of()
    assert changed(base, cell_of(f"model.weights={tmp_path}/moved.safetensors")) == NONE
    assert changed(base, cell_of(f"model.weights={tmp_path}/finetuned.safetensors")) == ALL


def test_reference(cell_of: CellOf, tmp_path: Path) -> None:
    statistics = {"mu": torch.zeros(64, dtype=torch.float64), "sigma": torch.eye(64, dtype=torch.float64)}
    reference.write(tmp_path / "mine.safetensors", statistics, FASHION_CNN, "mine")
    assert changed(cell_of(), cell_of(f"protocol.reference={tmp_path}/mine.safetensors")) == {"fid", "kid", "precision_recall"}


def test_extractor(cell_of: CellOf, monkeypatch: pytest.MonkeyPatch) -> None:
    base = cell_of()
    before = {name: stage.key for name, stage in base.stages.items()}
    monkeypatch.setitem(EXTRACTORS, FASHION_CNN.name, replace(FASHION_CNN, digest="0" * 64))
    after = Cell(base.config).stages
    assert {name for name in after if after[name].key != before[name]} == FEATURES


STRATEGY = """
def pick(steps, timesteps, generator):
    return list(range({start}, {start} + timesteps))
"""


def test_source_of_a_users_strategy(cell_of: CellOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "keys_strategy", raising=False)
    source, options = tmp_path / "keys_strategy.py", ["calib.strategy._target_=keys_strategy.pick"]
    source.write_text(STRATEGY.format(start=0))
    base = cell_of(*options)
    assert {name: stage.key for name, stage in base.stages.items()}  # the source is read when a key is asked for
    source.write_text(STRATEGY.format(start=1))
    assert changed(base, cell_of(*options)) == CALIBRATION
    source.write_text(STRATEGY.format(start=0))
    assert changed(base, cell_of(*options)) == NONE


def test_source_of_targets_among_a_targets_arguments(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "keys_nested.py").write_text("def inner() -> None: ...\n")
    inner = {"_target_": "keys_nested.inner"}
    plain, listed = (identity({"_target_": "torch.nn.Sequential", "size": 3, "inner": given}) for given in (inner, [inner]))
    assert plain == {"_target_": "torch.nn.Sequential", "size": 3, "inner": identity(inner), "code": None}
    assert listed["inner"] == [identity(inner)]
    assert identity(inner)["code"] is not None


HELPERS = {
    "keys_helped.py": "try:\n    from . import nothing\nexcept ImportError:\n    import torch\n"
    "from keys_helpers.inner import START\n" + STRATEGY.format(start="START"),
    "keys_helpers/__init__.py": "",
    "keys_helpers/inner.py": "from . import numbers\nSTART = numbers.FIRST\n",
    "keys_helpers/numbers.py": "import keys_helped\nFIRST = 0\n",
    "keys_helpers/unused.py": "",
}


def test_source_of_what_a_users_strategy_imports(cell_of: CellOf, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(tmp_path)
    for name, source in HELPERS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(source)
    options = ["calib.strategy._target_=keys_helped.pick"]
    base = cell_of(*options)
    assert {name: stage.key for name, stage in base.stages.items()}  # the source is read when a key is asked for
    for name, expected in (("numbers", CALIBRATION), ("inner", CALIBRATION), ("unused", NONE)):
        path = tmp_path / "keys_helpers" / f"{name}.py"
        before = path.read_text()
        path.write_text(f"{before}\nADDED = 1\n")
        assert changed(base, cell_of(*options)) == expected
        path.write_text(before)
    assert changed(base, cell_of(*options)) == NONE


def test_versions_of_what_computes(cell_of: CellOf, monkeypatch: pytest.MonkeyPatch) -> None:
    base = cell_of()
    before = {name: stage.key for name, stage in base.stages.items()}

    def since() -> set[str]:
        after = Cell(base.config).stages
        return {name for name in after if after[name].key != before[name]}

    for owner, name, other in ((torch, "__version__", "0.0"), (device, "_version", lambda package: "0.0")):
        with monkeypatch.context() as patch:
            patch.setattr(owner, name, other)
            assert since() == ALL


def test_key_depends_on_no_order(cell_of: CellOf) -> None:
    one = cell_of("quant.layers={conv_in: {weight_bits: 4, act_bits: 4}}")
    other = cell_of("quant.layers={conv_in: {act_bits: 4, weight_bits: 4}}")
    assert changed(one, other) == NONE


def test_later_patterns_win_so_their_order_counts(cell_of: CellOf) -> None:
    first, second = "conv_in: {weight_bits: 4}", "*conv_*: {weight_bits: 8}"
    one, other = cell_of(f"quant.layers={{{first}, {second}}}"), cell_of(f"quant.layers={{{second}, {first}}}")
    assert changed(one, other) == WEIGHTS


def test_only_stages_with_new_keys_are_executed(cell_of: CellOf, executed: Callable[..., list[str]]) -> None:
    def run(*options: str) -> set[str]:
        before = executed()
        cell = cell_of(*options)
        cell.run()
        made = executed()[len(before) :]
        assert len(made) == len(set(made))
        names = {stage.entry: name for name, stage in cell.stages.items()}
        return {names[entry] for entry in made}

    assert run("method=ptq") == ALL
    assert run("method=timestep_aware") == CALIBRATION
    assert run("method=timestep_aware", "quant=w4a6") == ACT
    assert run("method=timestep_aware", "quant=w8a8") == WEIGHTS
    assert run("method=fp") == {"size", "sizes", "distance"} | FEATURES
    assert run("method=timestep_aware", "protocol.n=24") == IMAGES
    assert run("method=timestep_aware", "seed=1") == TRAJECTORY | WEIGHTS


def test_manifest_says_what_an_entry_is(cell_of: CellOf) -> None:
    cell = cell_of()
    cell.run()
    for stage in cell.stages.values():
        note = json.loads((cell.out / "store" / stage.entry / "manifest.json").read_text())["note"]
        made = note.pop("made")
        assert made.keys() == {"commit", "dirty"}
        assert note == stage.described(lambda one: one.key)
        assert keys.short_hash(note) == stage.key


WRAPPED = {
    "library_of_mine.py": "def build(**options):\n    return options\n",
    "named_here.py": "from functools import wraps\nfrom library_of_mine import build\n"
    "@wraps(build)\ndef make(**options):\n    return build(**options)\n",
    "patched_here.py": "from diffusers import UNet2DModel\nNet = UNet2DModel\n",
}


@pytest.mark.parametrize(
    ("target", "file", "counts"),
    [
        ("named_here.make", "named_here.py", True),
        ("named_here.make", "library_of_mine.py", True),
        ("patched_here.Net", "patched_here.py", True),
        ("patched_here.Net", "named_here.py", False),
    ],
)
def test_the_module_that_a_target_is_named_in_counts_and_the_one_that_defines_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, target: str, file: str, counts: bool
) -> None:
    for name, source in WRAPPED.items():
        (tmp_path / name).write_text(source)
        monkeypatch.delitem(sys.modules, name.removesuffix(".py"), raising=False)
    monkeypatch.syspath_prepend(tmp_path)
    before = keys.code_of(target)
    (tmp_path / file).write_text(f"{(tmp_path / file).read_text()}x = 1\n")
    assert (keys.code_of(target) != before) is counts


def test_the_version_of_a_package_counts_that_a_target_is_of(monkeypatch: pytest.MonkeyPatch) -> None:
    before = keys.code_of("lpips.LPIPS")
    monkeypatch.setattr(keys.code, "_version", lambda package: "0.0" if package == "lpips" else None)
    assert keys.code_of("lpips.LPIPS") != before
