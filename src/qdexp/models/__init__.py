"""Networks from a config: the class named by ``model.network._target_``, filled with what ``model.weights`` names.

A class may define ``adapt_weights(weights) -> weights``: how its own weights follow from those of the file, which have the same
names and shapes; it may be given a part of them. A checkpoint holds the network's own, so loading one does not call it.
"""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate

from qdexp import device as devices
from qdexp.config import RANDOM, FirstStage, Model
from qdexp.errors import UserError
from qdexp.folding import fold
from qdexp.models import loading
from qdexp.models.first_stage import Decoder
from qdexp.models.weights import WeightFiles


def is_random(model: Model) -> bool:
    """Whether the network's weights are drawn."""
    return model.weights == RANDOM


def is_rehearsal(model: Model) -> bool:
    """Whether anything is drawn, network, first stage or text encoders: the run rehearses, and says nothing of the model."""
    others = (getattr(model.first_stage, "weights", None), (model.condition or {}).get("weights"))
    return is_random(model) or RANDOM in others


def files(model: Model, fetch: bool = True) -> dict[str, Path]:
    """The files that define the network, by their roles; what the hub has is fetched if it may be. UserError where missing."""
    return loading.files(model.weights, model.subfolder, model.publisher, "model.weights", fetch)


def first_stage_files(model: Model) -> dict[str, Path]:
    """The files of the first stage; nothing where there is none."""
    stage = model.first_stage
    if stage is None:
        return {}
    return loading.files(stage.weights, stage.subfolder, model.publisher, "model.first_stage.weights")


def opened(model: Model) -> WeightFiles:
    """The files that define the network, their names and shapes read."""
    return WeightFiles(files(model).values(), f"model.weights={model.weights}")


def first_stage_opened(model: Model, stage: FirstStage) -> WeightFiles:
    """Open the weight files of the first stage."""
    return WeightFiles(first_stage_files(model).values(), f"model.first_stage.weights={stage.weights}")


def build(model: Model, channels_last: bool) -> torch.nn.Module:
    """The full-precision network in eval mode, without gradients, its weights folded. UserError where they do not fit it."""
    network = drawn(model)
    if channels_last:
        devices.to_channels_last(network)
    if not is_random(model):
        found = opened(model)
        found.check_digests()
        loading.fill(network, found, "model.network")
    fold(network)
    return network.eval().requires_grad_(False)


def first_stage(model: Model) -> Decoder | None:
    """The decoder that makes images of latents, in full precision; None where the model's x_0 is an image itself."""
    stage = model.first_stage
    if stage is None:
        return None
    network, scale = _architecture(stage.network, "model.first_stage.network"), stage.scale or 1.0
    if stage.weights != RANDOM:
        found = first_stage_opened(model, stage)
        found.check_digests()
        loading.fill(network, found, "model.first_stage.network")
        scale = loading.measured_scale(found, stage.scale)
    return Decoder(network, scale, stage.shift).eval().requires_grad_(False)


def drawn(model: Model) -> torch.nn.Module:
    """The network with the numbers that its constructor draws, in memory."""
    return _architecture(model.network, "model.network")


def skeleton(model: Model) -> torch.nn.Module:
    """The architecture without memory; with it where its constructor computes with its parameters."""
    return skeleton_of(model.network, "model.network")


def parameters(model: Model) -> int:
    """The number of parameters of the network."""
    return sum(value.numel() for value in skeleton(model).parameters())


def stored_bytes(model: Model) -> int:
    """Bytes of the network's own tensors, of the dtypes that they have in its files; float32 where they are random."""
    if is_random(model):
        return 4 * parameters(model)
    return loading.stored_bytes(skeleton(model), opened(model))


def skeleton_of(target: Mapping[str, Any], option: str) -> torch.nn.Module:
    """Build any network that ``option`` describes, on the meta device."""
    try:
        with torch.device("meta"):
            return _architecture(target, option)
    except UserError:
        return _architecture(target, option)


def _architecture(target: Mapping[str, Any], option: str) -> torch.nn.Module:
    """Seeded: with ``model.weights=random`` the numbers that the constructor draws are the ones that stay."""
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = instantiate(target, _convert_="all")
    except InstantiationException as error:
        raise UserError(f"{option}: {' '.join(str(error).split())}") from error
    if not isinstance(network, torch.nn.Module):
        raise UserError(f"{option}._target_={target['_target_']}: makes no torch.nn.Module; name the class of a network")
    return network
