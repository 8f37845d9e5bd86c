"""A model as the JSON files of its diffusers folder describe it: network, noise schedule, first stage, conditioning.

A folder may come from anybody. So it makes networks of diffusers alone, of plain values: text that could name another class, a
file or a variable is refused before anything is built.
"""

import inspect
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import diffusers
from diffusers import DDPMScheduler, DiTTransformer2DModel, PixArtTransformer2DModel, UNet2DConditionModel, UNet2DModel
from omegaconf import DictConfig, OmegaConf, open_dict
from packaging.version import Version

from qdexp.calling import FLOW
from qdexp.config import RANDOM
from qdexp.config.checks import READ_FROM_FILES
from qdexp.errors import UserError
from qdexp.models import architecture
from qdexp.models.declared import APART, BETAS, CONFIG, SCHEDULER, Said, class_name, declared, read, scheduler_class
from qdexp.models.titles import name_of
from qdexp.paths import conf_folder

FIRST_STAGES = ("vae", "vqvae", "movq")
"""The places of the autoencoder in a pipeline's folder."""

_OWN = "describe it in a YAML of yours (docs/extending.md)"
_TRUE_SIZES = Version("0.9.0")
"""The sizes that earlier versions of diffusers wrote wrongly, 32 for the edge of Stable Diffusion's latents."""

_CONDITION = "model.condition={_target_: mine.Mine} (qdexp.models.conditioning)"
_EXAMPLE = (
    "model.schedule='{num_train_timesteps: 1000, beta_schedule: linear, beta_start: 0.0001, beta_end: 0.02, "
    "prediction_type: epsilon}'"
)
_OTHER_INPUTS = (
    "class_embed_type",
    "num_class_embeds",
    "encoder_hid_dim_type",
    "time_cond_proj_dim",
    "use_additional_conditions",
)
"""Options of a network by which it is called with more than text."""

_PREDICTIONS = ("epsilon", "v_prediction", "sample")
_OTHER_PATHS = ("use_dynamic_shifting", "invert_sigmas", "shift_terminal")
"""Options of a flow's scheduler by which it follows another path than ``shift`` says."""


def filled(cfg: DictConfig) -> DictConfig:
    """A composed config with what it leaves to others: a copy, where there is anything.

    Where a model's network, schedule, shape or name is null, the folder of ``model.weights`` says what the config does not;
    what that says wins. Where ``protocol.scheduler`` is null, the sampler is the one that suits the model's schedule and first
    stage.

    Raises:
        UserError: The folder describes no model that can be sampled from; the line says what to write instead.
    """
    model, protocol = cfg.get("model"), cfg.get("protocol")
    of_model = isinstance(model, DictConfig) and any(model.get(option, "") is None for option in READ_FROM_FILES)
    of_protocol = isinstance(protocol, DictConfig) and "scheduler" in protocol and protocol.scheduler is None
    if not (of_model or of_protocol):
        return cfg
    cfg = cfg.copy()
    with open_dict(cfg):
        if of_model:
            found = _Reader(model).model()
            if OmegaConf.select(model, "network._target_") is not None:
                del found["network"]  # another class has other options
            cfg.model = model = _merged(found, model)
        if of_protocol:
            cfg.protocol = _merged(OmegaConf.load(conf_folder() / "sampler" / f"{_sampler(model)}.yaml"), protocol)
    return cfg


def _merged(found: Any, given: DictConfig) -> Any:
    return OmegaConf.merge(found, {key: value for key, value in given.items_ex(resolve=False) if value is not None})


def _sampler(model: Any) -> str:
    if OmegaConf.select(model, "schedule.prediction_type") == FLOW:
        return "flow_euler"
    return "dpm_solver" if model.get("first_stage") is None else "dpm_solver_latent"


@dataclass(frozen=True)
class _Network:
    """A network of diffusers as its JSON file ``file`` declares it, a ``kind``."""

    file: str
    said: Mapping[str, Any]
    kind: Any

    @cached_property
    def defaults(self) -> dict[str, Any]:
        """The defaults of all arguments of its constructor."""
        return {name: taken.default for name, taken in inspect.signature(self.kind).parameters.items()}

    def __getitem__(self, option: str) -> Any:
        return self.said.get(option, self.defaults.get(option))

    @property
    def target(self) -> dict[str, Any]:
        """The network as ``model.network`` names it."""
        name = (
            "qdexp.models.networks.PixArtModel" if self.kind is PixArtTransformer2DModel else f"diffusers.{self.kind.__name__}"
        )
        return {"_target_": name, **{key: value for key, value in self.said.items() if key in self.defaults.keys() - APART}}


class _Reader:
    """Reads the folder of ``given.weights``; options that are ``given`` are for the caller to merge, and checked by others."""

    def __init__(self, given: DictConfig) -> None:
        if OmegaConf.is_missing(given, "weights") or given.weights == RANDOM:
            raise UserError("model.weights: model=folder is read from there; name a folder that save_pretrained has written, "
                            "or a name on the Hugging Face hub")  # fmt: skip
        self.given, self.weights = given, str(given.weights)
        self.option = f"model.weights={self.weights}"
        try:
            self.said: Said = read(self.weights, str(given.get("subfolder") or ""), self.option)
        except FileNotFoundError as error:
            raise self._wrong(f"{error}; name a folder that save_pretrained has written") from error

    def model(self) -> dict[str, Any]:
        """The options of the model, as far as they are not given."""
        if CONFIG not in self.said.files:
            if Path(self.weights).is_file():
                raise self._wrong("is a file; name the folder in which save_pretrained has put it")
            raise self._wrong(f"no {CONFIG} beside its weights says of which network they are; save it by save_pretrained, or "
                              f"{_OWN}")  # fmt: skip
        network, stage = self._network(*self.said.files[CONFIG]), self._first_stage()
        shape = self._shape(network)
        found = {"name": name_of(self.weights), "network": network.target, "schedule": self._schedule(), "shape": shape}
        if stage is not None:
            scale, shift = stage["scaling_factor"] or 1.0, stage["shift_factor"] or 0.0
            found["first_stage"] = {
                "weights": self.said.root,
                "subfolder": Path(stage.file).parent.name,
                "network": stage.target,
                "scale": scale,
                "shift": shift,
            }
        if self.given.get("condition") is None:
            found |= self._conditioning(network, shape, stage)
        for part in (network, stage):
            if part is not None:
                self._tell_of_unknown(part)
        return found

    def _wrong(self, what: str) -> UserError:
        return UserError(f"{self.option}: {what}")

    def _network(self, file: str, said: Mapping[str, Any]) -> _Network:
        name = class_name(said)
        if name is None or not architecture.is_listed(f"diffusers.{name}"):
            raise self._wrong(
                f"{file} says _class_name={name}, which is no network of diffusers {diffusers.__version__}; {_OWN}"
            )
        network = _Network(file, said, architecture.imported(f"diffusers.{name}"))
        self._check_plain(file, {key: value for key, value in said.items() if key in network.defaults})
        return network

    def _tell_of_unknown(self, network: _Network) -> None:
        """Warn of options of another version, as diffusers does."""
        ignored = {"norm_type", *network.defaults}  # the first says which kind a network is that was one of several
        said = {key for key, value in network.said.items() if key[:1] != "_" and value not in (None, False)}
        if odd := sorted(said - ignored):
            _note(f"{self.option}: {network.file} says {', '.join(odd[:3])}: unknown to {network.kind.__name__} in diffusers "
                  f"{diffusers.__version__}, left out")  # fmt: skip

    def _check_plain(self, file: str, values: Mapping[str, Any]) -> None:
        """Raises UserError where a value may be more: a class, a path, or a variable that the config looks up."""
        more = sorted(architecture.named(values)) + ["${"] * ("${" in json.dumps(values))
        if more:
            raise self._wrong(f"{file} says {more[0]}, which may run code or read what is elsewhere; {_OWN}")

    def _first_stage(self) -> _Network | None:
        root = self.said.root
        place = next((name for name in FIRST_STAGES if name in self.said.index or (Path(root) / name).is_dir()), "")
        said = declared(root, f"{place}/{CONFIG}", self.option) if place else {}
        return self._network(f"{place}/{CONFIG}", {"_class_name": self.said.kind_of(place), **said}) if said else None

    def _schedule(self) -> dict[str, Any]:
        """The noise schedule; nothing where the folder has none and it is given."""
        if SCHEDULER not in self.said.files:
            if self.given.get("schedule") is not None:
                return {}
            raise self._wrong(f"no {SCHEDULER} says under which noise the network was trained; save it there by "
                              f"scheduler.save_pretrained, or give {_EXAMPLE}")  # fmt: skip
        file, said = self.said.files[SCHEDULER]
        name, takes = str(said.get("_class_name")).removeprefix("Flax"), inspect.signature(scheduler_class(said)).parameters
        if "FlowMatch" in name or said.get("prediction_type") == FLOW:
            if odd := [key for key in _OTHER_PATHS if said.get(key)]:
                raise self._wrong(f"{file} says {odd[0]}={said[odd[0]]}, and no sampler here follows such a path; leave it "
                                  f"out there, if the network may be sampled so")  # fmt: skip
            shift = said.get("shift", said.get("flow_shift", 1.0))
            found = {"num_train_timesteps": said.get("num_train_timesteps", 1000), "shift": shift, "prediction_type": FLOW}
        elif "beta_schedule" not in takes or (scheduler_class(said).__name__ != name and "beta_schedule" not in said):
            raise self._wrong(f"{file} says _class_name={name}, which has no betas: such networks cannot be sampled from here")
        else:
            found = {key: said.get(key, takes[key].default) for key in BETAS if key in takes}
            self._check_betas(file, found)
            found["prediction_type"] = said.get("prediction_type", "epsilon")
            if found["prediction_type"] not in _PREDICTIONS:
                raise self._wrong(f"{file} says prediction_type={found['prediction_type']}; it has to be one of "
                                  f"{', '.join(_PREDICTIONS)}")  # fmt: skip
            found["rescale_betas_zero_snr"] = said.get("rescale_betas_zero_snr") or None
        self._check_plain(file, found)
        return {key: value for key, value in found.items() if value is not None}

    def _check_betas(self, file: str, betas: Mapping[str, Any]) -> None:
        self._check_plain(file, betas)
        try:
            sound = bool(((made := DDPMScheduler(**betas).betas) >= 0).all() and (made <= 1).all())
        except Exception:  # whatever diffusers makes of such values
            sound = False
        if not sound:
            told = ", ".join(f"{key}={value}" for key, value in betas.items() if value is not None)
            raise self._wrong(f"{file} describes no noise schedule ({told[:200]}); correct it, or save it again by "
                              f"scheduler.save_pretrained")  # fmt: skip

    def _shape(self, network: _Network) -> list[int]:
        """The shape of x_t: the one given, if the network takes it."""
        size, channels, returned = (network[key] for key in ("sample_size", "in_channels", "out_channels"))
        if returned is not None and returned not in (channels, 2 * (channels or 0)):  # twice: of a variance too
            raise self._wrong(f"{network.file} says in_channels={channels} and out_channels={returned}, so it is called with "
                              f"more than x_t, or predicts something else; {_OWN}")  # fmt: skip
        if given := self.given.get("shape"):
            if channels is not None and given[0] != channels:
                raise UserError(f"model.shape={list(given)}: {network.file} in {self.weights} says in_channels={channels}; "
                                f"give as many channels")  # fmt: skip
            return list(given)
        sizes = [size, size] if isinstance(size, int) else size
        if (
            not isinstance(sizes, list)
            or len(sizes) != 2
            or not all(type(one) is int and one > 0 for one in [channels, *sizes])
        ):
            raise self._wrong(f"{network.file} says in_channels={channels} and sample_size={size}; give "
                              f"model.shape=[CHANNELS,HEIGHT,WIDTH]")  # fmt: skip
        version = Version(str(network.said.get("_diffusers_version", "1")))
        if network.kind is UNet2DConditionModel and size == 32 and version < _TRUE_SIZES:
            sizes = [64, 64]  # as diffusers' pipelines take it
        return [channels, *sizes]

    def _conditioning(self, network: _Network, shape: list[int], stage: _Network | None) -> dict[str, Any]:
        """``condition``, and what goes with it; nothing where the network is called with x_t and t alone."""
        if network.kind is DiTTransformer2DModel:  # its embedding has one row more, of no class
            return _classes(network["num_embeds_ada_norm"], empty=network["num_embeds_ada_norm"])
        if network.kind is UNet2DModel:
            if network["class_embed_type"] is not None:
                raise self._no_condition(network, f"class_embed_type={network['class_embed_type']}")
            return {} if network["num_class_embeds"] is None else _classes(network["num_class_embeds"], empty=None)
        if odd := [key for key in _OTHER_INPUTS if network[key] not in (None, False)]:
            raise self._no_condition(network, f"{odd[0]}={network[odd[0]]}")
        parts = [part for part in sorted(self.said.index) if re.fullmatch(r"text_encoder(_\d)?", part)]
        encoders = [kind for kind in map(self.said.kind_of, parts) if kind is not None]
        halvings = 0 if stage is None else len(stage["block_out_channels"]) - 1
        match network.kind.__name__, encoders, network["addition_embed_type"]:
            case "UNet2DConditionModel", ["CLIPTextModel"], None:
                return _prompts("StableDiffusionPrompts", 7.5, weights=self.said.root)
            case "UNet2DConditionModel", ["CLIPTextModel", "CLIPTextModelWithProjection"], "text_time":
                return _prompts("XLPrompts", 5.0, weights=self.said.root, size=shape[-1] * 2**halvings)
            case "PixArtTransformer2DModel", ["T5EncoderModel"], _ if self._is_pixart_alpha(network):
                return _prompts("PixArtPrompts", 4.5, weights=self.said.root)
        if encoders:
            raise self._no_condition(network, f"_class_name={network.kind.__name__}, with {' and '.join(encoders)} beside it")
        raise self._wrong(f"{network.file} says _class_name={network.kind.__name__}, and no text encoders lie beside it; name "
                          f"the folder of the whole pipeline, or a class of yours, {_CONDITION}")  # fmt: skip

    def _is_pixart_alpha(self, network: _Network) -> bool:
        """Sigma's prompts are longer; the larger networks are called with sizes too, unless they say that they are not."""
        sized = network["sample_size"] == 128 and network["use_additional_conditions"] is None
        return not sized and "Sigma" not in str(self.said.index.get("_class_name"))

    def _no_condition(self, network: _Network, what: str) -> UserError:
        return self._wrong(
            f"{network.file} says {what}: no condition of qdexp is for that; name a class of yours, {_CONDITION}"
        )


@cache
def _note(text: str) -> None:
    """Said once, whatever the number of cells."""
    print(f"note: {text}", flush=True)


def _classes(classes: int, empty: int | None) -> dict[str, Any]:
    condition = {"_target_": "qdexp.models.conditioning.Classes", "classes": classes, "empty": empty}
    return {"condition": condition, "example": {"class_labels": []}}


def _prompts(kind: str, guidance: float, **options: Any) -> dict[str, Any]:
    """``guidance``: of its pipeline."""
    condition = {"_target_": f"qdexp.models.prompts.{kind}", **options}
    return {"condition": condition, "guidance": guidance, "prompts": "${zoo:prompts.txt}"}
