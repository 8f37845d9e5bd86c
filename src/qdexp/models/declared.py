"""The declarations of a diffusers folder about its networks and their noise schedule, compared with ``model``.

A folder's weights fit many networks: heads, activations, groups and epsilons have no shapes, and what the network predicts,
under which noise, is in no tensor at all. Its JSON files tell, so whatever contradicts them is refused. Only what a file says
counts, not what diffusers would add to it; what changes no arithmetic does not.
"""

import inspect
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from math import isclose
from pathlib import Path
from typing import Any

import diffusers
import torch
from diffusers import DDPMScheduler, ModelMixin
from torch import nn

from qdexp.calling import FLOW
from qdexp.config import RANDOM, FirstStage, Model, Target
from qdexp.errors import UserError
from qdexp.files import read_text
from qdexp.models.weights import NETWORKS, find, find_in

CONFIG, SCHEDULER, INDEX = "config.json", "scheduler_config.json", "model_index.json"
SHOWN = 3
"""Contradictions that are told; the others are counted."""

BETAS = ("beta_schedule", "beta_start", "beta_end", "num_train_timesteps", "trained_betas")
APART = {"scaling_factor", "shift_factor", "latents_mean", "latents_std"}
"""Keys of an autoencoder's config that are options of ``model.first_stage``, not of its network."""

_HINTS = {"sample_size", "dropout", "force_upcast"}
"""Keys that may matter, to some networks: where they change no arithmetic, they may differ."""

_RENAMED = {"ada_norm_zero": "DiTTransformer2DModel", "ada_norm_single": "PixArtTransformer2DModel"}
"""The names of ``Transformer2DModel`` by ``norm_type``, since its kinds have classes of their own."""

Build = Callable[[Target], nn.Module]
"""Makes a network, without memory if it can be."""


@dataclass(frozen=True)
class Contradiction:
    """``file`` says something else than ``option``."""

    file: str
    said: str
    option: str
    value: Any

    def __str__(self) -> str:
        return f"{self.file} says {self.said}, {self.option} is {self.value}"


def check(model: Model, build: Build, fetch: bool = True) -> None:
    """Compares the folders of a model's weights, or names on the hub, with its options.

    Raises:
        UserError: One contradicts the other; the first few contradictions are named with both values.
    """
    found = read(model.weights, model.subfolder, "model.weights", fetch).files
    network = build(model.network) if CONFIG in found else None
    _refuse(
        f"model.weights={model.weights}",
        [
            *(_of_network(*found[CONFIG], network, model.network, "model.network", build) if network is not None else ()),
            *(_of_schedule(*found[SCHEDULER], model.schedule) if SCHEDULER in found else ()),
        ],
    )
    stage = model.first_stage
    found = {} if stage is None else read(stage.weights, stage.subfolder, "model.first_stage.weights", fetch).files
    if stage is not None and CONFIG in found:
        option, network = "model.first_stage.network", build(stage.network)
        told = [*_of_latents(*found[CONFIG], stage), *_of_network(*found[CONFIG], network, stage.network, option, build)]
        _refuse(f"model.first_stage.weights={stage.weights}", told)


def _refuse(weights: str, contradictions: list[Contradiction]) -> None:
    if contradictions:
        more = f"; and {len(contradictions) - SHOWN} more" if len(contradictions) > SHOWN else ""
        told = "; ".join(map(str, contradictions[:SHOWN]))
        raise UserError(f"{weights}: {told}{more}; give these options the folder's values, or name the folder of this model")


@dataclass(frozen=True)
class Said:
    """``files``: the names and contents of ``config.json`` and ``scheduler_config.json`` by these words, as far as they are
    there; ``root``: the folder, or name on the hub, of the whole pipeline; ``index``: its ``model_index.json``.
    """

    root: str
    index: Mapping[str, Any] = field(default_factory=dict)
    files: Mapping[str, tuple[str, dict[str, Any]]] = field(default_factory=dict)

    def kind_of(self, part: str) -> str | None:
        """The class of a part of the pipeline; None where the index names none."""
        named = self.index.get(part)
        return str(named[1]) if isinstance(named, list) and len(named) == 2 and named[1] else None


def read(weights: str, subfolder: str, option: str, fetch: bool = True) -> Said:
    """Read the declarations around the weights of a network.

    The class that ``model_index.json`` gives the network stands in for one that ``config.json`` lacks. Raises
    FileNotFoundError where there are no weights, UserError where a file is truncated.
    """
    place = Path(weights)
    if weights == RANDOM:
        return Said(weights)
    first = find(weights, subfolder, fetch)[0]
    if place.is_file() and not first.name.startswith("diffusion_pytorch_model"):
        return Said(weights)  # what lies beside any other file is none of its
    here, root = first.parent.name, weights
    folder = Path(here if here == subfolder or (not subfolder and here in NETWORKS) else "")
    if place.exists():
        top = place if place.is_dir() else first.parent
        if top == first.parent and here in declared(str(top.parent), INDEX, option):
            top = top.parent
        root, folder = str(top), first.parent.relative_to(top)
    config = dict(declared(root, str(folder / CONFIG), option, fetch))
    around = Said(root, declared(root, INDEX, option, fetch))
    kind = next(filter(None, map(around.kind_of, (here,) if folder.name else NETWORKS)), None)
    if config and kind is not None:
        config.setdefault("_class_name", kind)
    found = {CONFIG: (str(folder / CONFIG), config)} if config else {}
    for file in (SCHEDULER, f"scheduler/{SCHEDULER}"):
        if said := declared(root, file, option, fetch):
            found[SCHEDULER] = file, dict(said)
    return replace(around, files=found)


def class_name(said: Mapping[str, Any]) -> str | None:
    """The current name in diffusers of a network's class; None where the file does not say."""
    name = said.get("_class_name")
    plain = None if name is None else str(name).removeprefix("Flax")
    return _RENAMED.get(str(said.get("norm_type")), plain) if plain == "Transformer2DModel" else plain


def scheduler_class(said: Mapping[str, Any]) -> type:
    """The scheduler class of diffusers; DDPM's where there is none of this name, or one whose requirements are not
    installed."""
    kind = getattr(diffusers, str(said.get("_class_name")).removeprefix("Flax"), None)
    own = isinstance(kind, type) and kind.__module__.startswith("diffusers.schedulers")
    return kind if isinstance(kind, type) and own else DDPMScheduler


def declared(place: str, name: str, option: str, fetch: bool = True) -> Mapping[str, Any]:
    """The JSON file ``name`` in a folder or a repository of the hub; empty where there is none."""
    try:
        (path,) = find_in(place, [name], fetch)
    except FileNotFoundError:
        return {}
    return _json(path, option)


def _json(path: Path, option: str) -> Mapping[str, Any]:
    try:
        content = json.loads(read_text(path))
    except ValueError as error:
        raise UserError(f"{option}: {path} is no whole JSON file; fetch it again") from error
    if not isinstance(content, dict):
        raise UserError(f"{option}: {path} holds no names and values; fetch it again")
    return content


def _of_network(
    file: str, said: Mapping[str, Any], network: nn.Module, target: Target, option: str, build: Build
) -> Iterator[Contradiction]:
    """Contradictions for a network of diffusers or a class derived from one; nothing is known of any other."""
    kinds = [kind for kind in type(network).__mro__ if issubclass(kind, ModelMixin) and kind is not ModelMixin]
    own = [kind.__name__ for kind in kinds if kind.__module__.startswith("diffusers.models.")]
    if not own:
        return
    name = class_name(said) or own[0]
    if name not in own:
        yield Contradiction(file, f"_class_name={name}", f"{option}._target_", target["_target_"])
        return
    config: Mapping[str, Any] = network.config  # type: ignore[assignment]
    theirs, ours = ({key: _plain(values[key]) for key in said.keys() & config.keys() - APART} for values in (said, config))
    differing = [key for key in sorted(theirs) if not key.startswith("_") and theirs[key] != ours[key]]
    unsure = [key for key in differing if key in _HINTS or _is_unset(theirs[key], ours[key])]
    if unsure and _same_arithmetic(network, build, {**target, **{key: theirs[key] for key in unsure}}):
        differing = [key for key in differing if key not in unsure]
    for key in differing:
        if key not in unsure or not _same_arithmetic(network, build, {**target, key: theirs[key]}):
            yield Contradiction(file, f"{key}={_shown(theirs[key])}", f"{option}.{key}", _shown(ours[key]))


def _is_unset(one: Any, other: Any) -> bool:
    """Whether one is null, which may stand for the other's value."""
    return (one is None or other is None) and not (one is True or other is True)


def _same_arithmetic(network: nn.Module, build: Build, target: Target) -> bool:
    try:
        return _arithmetic(network) == _arithmetic(build(target))
    except UserError:
        return False


def _arithmetic(network: nn.Module) -> dict[str, Any]:
    """The kinds of all modules below ``network``, with their plain attributes, and the shapes of all tensors; no dropout.

    Null is as good as false there.
    """
    modules = {
        name: (type(module), {key: value or False for key, value in vars(module).items() if key[0] != "_" and _is_plain(value)})
        for name, module in network.named_modules()
        if name and not isinstance(module, nn.Dropout)
    }
    return {"modules": modules, "shapes": {name: value.shape for name, value in network.state_dict().items()}}


def _is_plain(value: Any) -> bool:
    if isinstance(value, list | tuple):
        return all(map(_is_plain, value))
    return value is None or isinstance(value, bool | int | float | str)


def _of_schedule(file: str, said: Mapping[str, Any], schedule: Mapping[str, Any]) -> Iterator[Contradiction]:
    """Betas are compared by their numbers, which several options may give; the others by their values, as all of a flow's."""
    ours = DDPMScheduler(**{key: schedule[key] for key in BETAS if key in schedule})
    kind: Any = scheduler_class(said)
    takes = inspect.signature(kind).parameters
    if schedule.get("prediction_type") == FLOW:
        for key in schedule.keys() & said.keys():
            if said[key] != schedule[key]:
                yield Contradiction(file, f"{key}={_shown(said[key])}", f"model.schedule.{key}", _shown(schedule[key]))
        return
    if "beta_schedule" not in takes:
        yield Contradiction(file, f"_class_name={kind.__name__}, which has no betas", "model.schedule", dict(schedule))
        return
    stated = {key: said[key] for key in BETAS if key in said and key in takes}
    try:
        theirs = kind(**stated).betas
    except Exception as error:
        told = " ".join(str(error).split())
        raise UserError(f"model.weights: {file} describes no noise schedule ({told}); fetch it again") from error
    if theirs.shape != ours.betas.shape or not torch.allclose(theirs, ours.betas, rtol=1e-4, atol=1e-7):
        differing = [key for key in stated if _plain(stated[key]) != _plain(ours.config[key])]
        for key in differing:
            yield Contradiction(file, f"{key}={_shown(stated[key])}", f"model.schedule.{key}", _shown(ours.config[key]))
    others = {"prediction_type": "epsilon", "rescale_betas_zero_snr": False, **schedule}
    for key, value in others.items():
        if key in said and key not in BETAS and (said[key] or False) != (value or False):
            yield Contradiction(file, f"{key}={_shown(said[key])}", f"model.schedule.{key}", _shown(value))


def _of_latents(file: str, said: Mapping[str, Any], stage: FirstStage) -> Iterator[Contradiction]:
    for key, option, value in (("scaling_factor", "scale", stage.scale or 1.0), ("shift_factor", "shift", stage.shift)):
        theirs = said.get(key, value)
        if not isclose(0.0 if theirs is None else theirs, value, rel_tol=1e-6):
            yield Contradiction(file, f"{key}={theirs}", f"model.first_stage.{option}", value)
    for key in ("latents_mean", "latents_std"):
        if said.get(key) is not None:
            yield Contradiction(file, f"{key}={_shown(said[key])}", "model.first_stage", "one scale and shift for all channels")


def _plain(value: Any) -> Any:
    return list(map(_plain, value)) if isinstance(value, list | tuple) else value


def _shown(value: Any) -> str:
    text = json.dumps(value, default=str)
    return text.strip('"') if len(text) < 60 else f"{text[:56]} ..."
