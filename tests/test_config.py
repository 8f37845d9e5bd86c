import copy
from collections.abc import Iterator
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Any, ClassVar

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import DictConfig, OmegaConf

from qdexp.config import Config
from qdexp.config.checks import STRICT, checked, schema_of
from qdexp.errors import UserError
from qdexp.paths import ZOO, conf_folder

FAULTS = {
    "model.shape": ["model.shape=[28,28]", "model.shape=null"],
    "model.shape[2]": ["model.shape=[1,28,0]"],
    "model.shape[1]": ["model.shape=[1,a,28]"],
    "model.network": ["~model.network._target_"],
    "model.weights": ["~model.weights"],
    "quant.weight_bits": [f"quant.weight_bits={bits}" for bits in (1, 9, 16, 99, -4, "four", 4.5, "null")],
    "quant.act_bits": [f"quant.act_bits={bits}" for bits in (3, 9, 16)],
    "quant.softmax_bits": [f"quant.softmax_bits={bits}" for bits in (3, 17)],
    "quant.first_last_bits": [f"quant.first_last_bits={bits}" for bits in (1, 9)],
    "quant.first_act_bits": [f"quant.first_act_bits={bits}" for bits in (3, 9, 15, 17)],
    "quant.layers.conv_*.weight_bits": ["quant.layers={conv_*:{weight_bits:9}}"],
    "quant.layers.conv_*.act_bits": ["quant.layers={conv_*:{act_bits:3}}"],
    "quant.layers.conv_*.bits": ["quant.layers={conv_*:{bits:4}}"],
    "quant.layers": ["quant.layers=4"],
    "quant.weight": ["quant.weight=null"],
    "quant.weight.granularity": ["quant.weight.granularity=per_row"],
    "quant.act.symmetric": ["quant.act.symmetric=perhaps"],
    "quantizer.steps": ["quantizer.steps=nearest"],
    "protocol.noise_seed": ["protocol.noise_seed=-1", "protocol.noise_seed=4294967296"],
    "recon.batch": ["recon.batch=0", "recon.batch=all"],
    "recon.heldout": ["recon.heldout=0", "recon.heldout=0.5"],
    "memory.device_gb": [f"memory.device_gb={value}" for value in ("-1", "nan", "inf", "all", "null")],
    "memory.host_gb": [f"memory.host_gb={value}" for value in ("-1", "nan", "inf", "all")],
    "memory.scratch": ["memory.scratch=null", "memory.scratch=''"],
    "recon.precision": [f"recon.precision={value}" for value in ("float16", "16", "null")],
    "recon.compile": ["recon.compile=perhaps"],
    "recon.weights": ["recon.weights=null"],
    "recon.weights.iterations": ["recon.weights.iterations=0", "recon.weights.iterations=1e3.5"],
    "recon.weights.start": ["recon.weights.start=adaround", "recon.weights.start=null"],
    "recon.weights.rate": [f"recon.weights.rate={rate}" for rate in ("0", "-1", "inf", "fast")],
    "recon.weights.regulariser": ["recon.weights.regulariser=-0.1", "recon.weights.regulariser=inf"],
    "recon.weights.warmup": ["recon.weights.warmup=1", "recon.weights.warmup=-0.1"],
    "recon.weights.beta": [f"recon.weights.beta={beta}" for beta in ("[20]", "[2,20]", "[20,0]", "[20,10,2]", "[]", "null")],
    "recon.weights.balanced": ["recon.weights.balanced=maybe"],
    "recon.scales.iterations": ["recon.scales.iterations=-1"],
    "recon.scales.rate": ["recon.scales.rate=0", "recon.scales.rate=inf"],
    "recon.scales.power": ["recon.scales.power=0.9", "recon.scales.power=inf"],
    "recon.weight": ["+recon.weight=1"],
    "calib.timesteps": ["calib.timesteps=0", "calib.timesteps=ten"],
    "calib.rows": ["calib.rows=0", "calib.rows=-1"],
    "calib.strategy": ["~calib.strategy._target_", "calib.strategy=uniform"],
    "trajectory.samples": ["trajectory.samples=0"],
    "protocol.n": ["protocol.n=9", "protocol.n=1e3.5"],
    "protocol.guidance": ["protocol.guidance=-1", "protocol.guidance=inf", "protocol.guidance=nan"],
    "protocol.pixels": ["protocol.pixels=floor", "protocol.pixels=null"],
    "protocol.heldout": ["protocol.heldout=0"],
    "protocol.steps": ["protocol.steps=0", "protocol.steps=2.5"],
    "protocol.scheduler": ["~protocol.scheduler._target_"],
    "sampling.batch": ["sampling.batch=0", "sampling.batch=all"],
    "sampling.channels_last": ["sampling.channels_last=maybe"],
    "tracker.mode": ["tracker.mode=sometimes"],
    "tracker.project": ["tracker.project=a/b", "tracker.project=50%"],
    "cluster.restarts": ["cluster.restarts=-1"],
    "cluster.stages.default.memory_gb": ["+cluster.stages.default.memory_gb=0"],
    "device": ["device=tpu", "device=null"],
    "seed": ["seed=-1", "seed=4294967296", "seed=first"],
    "sweep": [
        "sweep=a/b",
        "sweep=/a",
        "sweep=..",
        "sweep=.",
        "sweep=''",
        "sweep='a%j'",
        f"sweep={'x' * 300}",
        "sweep=-a",
        "sweep=.a",
        "sweep=a.",
        "sweep='a,b'",
        "sweep=nul",
        f"sweep='{'ü' * 41}'",
    ],
    "model.name": ["model.name=my/model", "model.name=../../x", "model.name=''", f"model.name={'x' * 300}"],
    **{f"{group}.name": [f"{group}.name=../x"] for group in ("protocol", "quantizer", "calib", "recon", "tracker", "cluster")},
    "out": ["out=''", "out=null", "out=${nothing}"],
    "typo": ["+typo=1"],
    "quant.weight_bit": ["+quant.weight_bit=4"],
    "sampling": ["sampling=null", "~sampling"],
}


@pytest.fixture(scope="module", autouse=True)
def conf() -> Iterator[None]:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        yield


def composed(*overrides: str) -> DictConfig:
    """By Hydra; it composes once for all that set or leave out nothing but single values."""
    parsed = OverridesParser.create().parse_overrides(list(overrides))
    if all("." in str(one.key_or_group) for one in parsed):
        cfg = copy.deepcopy(default())
        ConfigLoaderImpl._apply_overrides_to_config(parsed, cfg)  # the second half of what it does with a command line
        return cfg
    return compose("config", overrides=list(overrides))


@cache
def default() -> DictConfig:
    return compose("config")


def config(*overrides: str) -> Config:
    return Config.of(composed(*overrides))


@pytest.mark.parametrize("name", ["2026_11_28", "a b", "ü", "w4a8+layers", "a.b-c", "x" * 80])
def test_a_name_of_letters_digits_and_a_few_signs_is_kept(name: str) -> None:
    assert config(f"sweep='{name}'").sweep == name


def test_a_letter_is_the_same_bytes_however_it_was_typed() -> None:
    assert config("sweep='u\u0308'").sweep == "\u00fc"


@pytest.mark.parametrize(("option", "override"), [(option, override) for option in FAULTS for override in FAULTS[option]])
def test_a_fault_is_named(option: str, override: str) -> None:
    cfg = composed(override)
    with pytest.raises(UserError) as caught:
        Config.of(cfg)
    text = str(caught.value)
    assert text.startswith((f"{option}=", f"{option}: "))
    assert "\n" not in text


def test_all_mistakes_are_named_at_once() -> None:
    wrong = ["quant.weight_bits=9", "+quant.layer=4", "seed=-1", "~model.weights", "recon.weights.beta=[1]", "out=''"]
    with pytest.raises(UserError) as caught:
        config(*wrong)
    assert set(caught.value.args) == {
        "quant.weight_bits=9: has to be 2, 3, 4, 5, 6, 7, 8 or 32 (32: left in full precision)",
        "quant.layer: there is no such option, did you mean layers?; there are weight_bits, act_bits, softmax_bits, "
        "first_last_bits, first_act_bits, layers, weight, act",
        "seed=-1: has to be greater than or equal to 0",
        "model.weights: is missing; give a value",
        "recon.weights.beta=[1.0]: give [start, end], start >= end >= 1",
        "out=: has to have at least 1 item, not 0 (a folder)",
    }
    assert str(caught.value) == "\n".join(caught.value.args)


def test_numbers_are_text_where_text_is_wanted_and_fractions_where_these_are() -> None:
    made = config("sweep=2026", "out=1", "protocol.guidance=7", "+tracker.entity=1.5")
    assert (made.sweep, made.out, made.tracker.entity) == ("2026", "1", "1.5")
    assert type(made.protocol.guidance) is float
    with pytest.raises(UserError, match=r"^seed=1: has to be a valid integer$"):
        config("seed='1'")


def test_the_schema_tells_options_bounds_and_choices() -> None:
    schema = schema_of(Config)
    assert set(schema["required"]) == {one.name for one in fields(Config)} - {"metric"}
    quant, protocol = (schema["$defs"][name]["properties"] for name in ("Quant", "Protocol"))
    assert quant["weight_bits"]["enum"] == [2, 3, 4, 5, 6, 7, 8, 32]
    assert protocol["n"] == {
        "description": "images; 1,000 and more give KID too", "minimum": 10, "title": "N", "type": "integer"
    }  # fmt: skip
    assert protocol["scheduler"]["required"] == ["_target_"]
    assert "Numbers of different protocols" in schema["$defs"]["Protocol"]["description"]


class Opaque:
    """A type that JSON cannot say."""


@dataclass(frozen=True, kw_only=True)
class Own:
    """Options as a user's step may have them."""

    __pydantic_config__: ClassVar[Any] = STRICT

    either: int | str = 1
    pairs: list[tuple[int, str]] = field(default_factory=list)
    kind: Opaque = field(default_factory=Opaque)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"either": [1]}, "mine.either=[1]: has to be a valid integer or has to be a valid string"),
        ({"pairs": [[1, 2]]}, "mine.pairs[0]=2: has to be a valid string"),
        ({"pair": 1}, "mine.pair: there is no such option, did you mean pairs?; there are either, pairs, kind"),
        (3, "mine=3: has to be a mapping"),
    ],
)
def test_a_mistake_in_an_option_of_any_type_is_one_line(options: object, told: str) -> None:
    with pytest.raises(UserError) as caught:
        checked(Own, options, "mine")
    assert caught.value.args == (told,)


def test_the_default_is_a_w4a8_cell() -> None:
    default = config()
    assert default.quant.label == "w4a8"
    assert not default.full_precision
    assert default.method == "timestep_aware"
    assert Path(default.model.weights) == ZOO / "ddpm_fashion" / "model.safetensors"
    assert isinstance(default.seed, int) and isinstance(default.sampling.channels_last, bool)


@pytest.mark.parametrize("bits", [2, 8, 32])
def test_the_ends_of_the_ranges_are_allowed(bits: int) -> None:
    wide = max(bits, 4)
    names = {"weight_bits": bits, "act_bits": wide, "softmax_bits": wide, "first_last_bits": bits}
    quant = config(*(f"quant.{name}={value}" for name, value in names.items())).quant
    assert names.items() <= asdict(quant).items()
    assert config("quant.softmax_bits=16").quant.softmax_bits == 16
    assert config().quant.first_act_bits is None


@pytest.mark.parametrize("bits", [4, 8, 16, 32])
def test_other_bits_of_the_first_input_are_in_the_label(bits: int) -> None:
    assert config(f"quant.first_act_bits={bits}").quant.label == f"w4a8+first_a{bits}"
    assert config(f"quant.first_act_bits={bits}").quant.only({"weights"}).first_act_bits is None


def test_bits_of_layers() -> None:
    changed = config("quant.layers={*attentions*:{weight_bits:8},conv_in:{act_bits:32,weight_bits:2}}").quant
    assert changed.layers == {"*attentions*": {"weight_bits": 8}, "conv_in": {"act_bits": 32, "weight_bits": 2}}
    assert changed.label == "w4a8+layers"


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["method=fp"], True),
        (["quantizer=none"], True),
        (["quant.weight_bits=32", "quant.act_bits=32"], True),
        (["quant.weight_bits=32", "quant.act_bits=32", "quantizer=none"], True),
        (["quant.weight_bits=32"], False),
        (["quant.act_bits=32"], False),
        (["quant.weight_bits=32", "quant.act_bits=32", "quant.layers={conv_in:{weight_bits:8}}"], False),
        (["method=ptq"], False),
    ],
)
def test_full_precision(overrides: list[str], expected: bool) -> None:
    assert config(*overrides).full_precision == expected


CHOICES = [path for path in sorted(conf_folder().glob("*/*.yaml")) if path.stem not in ("folder", "auto")]
"""Those two leave to a folder what they do not say: tests/models/test_folder.py."""


@pytest.mark.parametrize("path", CHOICES, ids=lambda path: f"{path.parent.name}={path.stem}")
def test_every_choice_of_every_group_is_valid(path: Path) -> None:
    made = config(f"{path.parent.name}={path.stem}")
    named = getattr(made, path.parent.name, None)
    assert getattr(named, "name", path.stem) == path.stem


def test_values_are_resolved_and_plain() -> None:
    made = config("out=here", "tracker.project=${sweep}", "sweep=evening")
    assert made.tracker.project == "evening"
    assert type(made.model.network) is dict and type(made.model.shape) is list
    assert type(made.model.network["block_out_channels"]) is list


@pytest.mark.parametrize("path", sorted((conf_folder() / "experiment").glob("*.yaml")), ids=lambda path: path.stem)
def test_what_an_experiment_sets_holds(path: Path) -> None:
    """Whichever file of the config says otherwise."""
    own = OmegaConf.load(path)
    cfg = compose("config", [f"experiment={path.stem}"])
    assert isinstance(own, DictConfig)
    wanted = OmegaConf.masked_copy(own, [str(key) for key in own if key not in ("defaults", "hydra")])
    assert OmegaConf.merge(cfg, wanted) == cfg


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["quant.weight.granularity=per_group"], "quant.weight.group=null: give 16, 32, 64 or 128"),
        (["quant.weight.group=64"], "quant.weight.group=64: goes with granularity=per_group alone"),
        (["quant=int4_g64", "quant.weight.group=48"], "quant.weight.group=48: has to be 16, 32, 64 or 128"),
        (["quant=int4_g64", "quant.weight.group=0"], "quant.weight.group=0: has to be"),
        (
            ["quant.weight.granularity=per_token"],
            "quant.weight.granularity=per_token: has to be 'per_tensor', 'per_channel' or",
        ),
        (["quant.weight.number=e3m4"], "quant.weight.number=e3m4: has to be 'int', 'e2m1', 'e4m3' or 'e5m2'"),
        (["quant.weight.number=e2m1"], "quant.weight.symmetric=false: numbers of e2m1 have no zero point; give symmetric=true"),
        (["quant=nvfp4", "quant.weight_bits=8"], "quant.weight_bits=8: numbers of e2m1 have 4 bits; give quant.weight_bits=4"),
        (["quant=mxfp8", "quant.act_bits=4"], "quant.act_bits=4: numbers of e4m3 have 8 bits; give quant.act_bits=8"),
        (
            ["quant=int4_g16", "quant.act.time=static"],
            "quant.act.time=static: scales of each token or group are computed at the",
        ),
        (["quant=w8a8_dynamic", "quant.act.time=groups"], "quant.act.time=groups: scales of each token or group"),
        (["quant.act.scale=bfloat16"], "quant.act.scale=bfloat16: activations that have one scale a tensor keep"),
        (["quant.weight.scale=e8m0"], "quant.weight.scale=e8m0: goes with floating point numbers; give number=e2m1"),
        (
            ["quant=mxfp4", "quant.weight.scale=e4m3", "quant.weight.number=e4m3"],
            "quant.weight.scale=e4m3: goes with number=e2m1",
        ),
        (["quant=fp8", "quant.act.symmetric=false"], "quant.act.symmetric=false: numbers of e4m3 have no zero point"),
    ],
)
def test_a_format_that_cannot_be_is_one_line_with_the_fix(overrides: list[str], told: str) -> None:
    with pytest.raises(UserError) as caught:
        config(*overrides)
    assert len(caught.value.args) == 1
    assert caught.value.args[0].startswith(told)


@pytest.mark.parametrize(
    ("choice", "label"),
    [
        (["quant=w4a4"], "w4a4"),
        (["quant=w4a16"], "w4a32+g64"),
        (["quant=int4_g16"], "w4a4+g16"),
        (["quant=w4a8_g64"], "w4a8+w_g64+token"),
        (["quant=w4a4", "quant.act={granularity: per_group, group: 32, time: dynamic}"], "w4a4+a_g32"),
        (["quant=w8a8_dynamic"], "w8a8+token"),
        (["quant=fp8"], "w8a8+e4m3+token"),
        (["quant=fp8_tensor", "quant.act.time=dynamic"], "w8a8+e4m3+dynamic"),
        (["quant=fp8_block128"], "w8a8+e4m3+g128"),
        (["quant=mxfp8"], "w8a8+mxfp8"),
        (["quant=nvfp4", "quant.layers={mid*: {act_bits: 8}}"], "w4a4+nvfp4+layers"),
        (["quant=mxfp4", "quant.act_bits=32"], "w4a32+mxfp4"),
    ],
)
def test_the_label_says_what_is_out_of_the_ordinary(choice: list[str], label: str) -> None:
    assert config(*choice).quant.label == label


def test_no_two_choices_of_quant_have_one_label() -> None:
    choices = sorted(path.stem for path in (conf_folder() / "quant").glob("*.yaml"))
    labels = [config(f"quant={choice}").quant.label for choice in choices]
    assert len(set(labels)) == len(labels) == len(choices)
