"""Loading of weights from files into a network: every tensor has one origin in the file, and nothing in the file is left
over."""

from collections.abc import Mapping
from math import isclose
from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from torch import nn

from qdexp.config import RANDOM
from qdexp.errors import UserError
from qdexp.models import compvis
from qdexp.models.names import Origin, levels_of, own_origins, pixel_name
from qdexp.models.weights import WeightFiles, find


def files(weights: str, subfolder: str, publisher: str | None, option: str, fetch: bool = True) -> dict[str, Path]:
    """The files of ``weights`` by their roles, none where they are random. UserError where they are missing, see ``find``."""
    if weights == RANDOM:
        return {}
    try:
        found = find(weights, subfolder, fetch)
    except FileNotFoundError as error:
        offered = f"download them from {publisher}" if publisher else "give the path of a safetensors file"
        fix = f"{offered}, or rehearse the run with {option}={RANDOM}"
        raise UserError(f"{option}={weights}: {error}; {fix}") from error
    return {"weights" if number == 0 else f"weights-{number}": path for number, path in enumerate(found)}


def origins(network: nn.Module, keys: Mapping[str, Any]) -> tuple[dict[str, Origin], set[str]]:
    """The origin of every tensor of ``network`` in a file with these keys, and the keys that ought to be used.

    An origin may name a key that the file lacks; whoever reads it tells.
    """
    if compvis.is_compvis(keys):
        is_autoencoder = hasattr(network, "post_quant_conv")
        return (compvis.first_stage_origins if is_autoencoder else compvis.unet_origins)(network, keys)
    if any(key.startswith("temb.dense.") for key in keys):
        levels = levels_of(network)
        return {name: Origin(pixel_name(name, levels)) for name in network.state_dict()}, set(keys)
    return own_origins(network, keys), set(keys)


def check_fit(network: nn.Module, found: WeightFiles, architecture: str) -> dict[str, Origin]:
    """The origins; UserError where a name or a shape differs. ``architecture`` is the option that names the network."""
    named, wanted = origins(network, found.shapes)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    for name, origin in named.items():
        has = found.shapes.get(origin.key)
        if has is None or not origin.fits(has, shapes[name]):
            there = "missing" if has is None else str(has)
            raise _misfit(found, architecture, f"{origin.key} is {there}, in {architecture} {name} {shapes[name]}")
    spare = sorted(wanted - {origin.key for origin in named.values()})
    if spare:
        raise _misfit(found, architecture, f"{spare[0]} is {found.shapes[spare[0]]}, in {architecture} missing")
    return named


def fill(network: nn.Module, found: WeightFiles, architecture: str) -> None:
    """Copies the weights into ``network``, a few at a time. Raises as ``check_fit`` does."""
    named = check_fit(network, found, architecture)
    shapes = {name: tuple(value.shape) for name, value in network.state_dict().items()}
    adapt = getattr(network, "adapt_weights", dict)
    for held in found.read({origin.key for origin in named.values()}):
        ready = {name: origin for name, origin in named.items() if origin.key in held}
        taken = {name: origin.take(held[origin.key], shapes[name]) for name, origin in ready.items()}
        network.load_state_dict(adapt(taken), strict=False)


def check_finite(network: nn.Module, found: WeightFiles) -> None:
    """Raises UserError where a parameter of ``network`` has a number in the files that is not finite; buffers may: masks do."""
    named, learned = origins(network, found.shapes)[0], dict(network.named_parameters())
    for held in found.read({origin.key for name, origin in named.items() if name in learned}):
        for key, value in held.items():
            value = value.float() if value.is_floating_point() else value.new_zeros(())
            if not value.sum().isfinite() and not value.isfinite().all():  # a sum may overflow, and is faster
                raise UserError(f"{found.option}: {key} has numbers that are not finite; fetch or export it again")


def check_schedule(found: WeightFiles, schedule: Mapping[str, Any]) -> None:
    """Raises UserError where the file holds a noise schedule that is not ``schedule``."""
    if "betas" not in found.shapes:
        return
    betas, own = found.tensor("betas").float(), DDPMScheduler(**schedule).betas
    if betas.shape != own.shape or not torch.allclose(betas, own, rtol=1e-4, atol=1e-7):
        told = f"{len(betas)} steps, beta {betas[0]:.6g} to {betas[-1]:.6g}"
        raise UserError(f"{found.option}: its noise schedule ({told}) is not model.schedule; change one of the two")


def measured_scale(found: WeightFiles, stated: float | None) -> float:
    """The scale of the latents that a CompVis checkpoint measured on its data, or else the one that the config states.

    Raises UserError where there are two that differ, or none.
    """
    if "scale_factor" in found.shapes:
        measured = float(found.tensor("scale_factor"))
        if stated is not None and not isclose(measured, stated, rel_tol=1e-3):
            raise UserError(f"{found.option}: it holds scale_factor={measured:.6g}, model.first_stage.scale is {stated}; give "
                            f"null there for the checkpoint's own")  # fmt: skip
        return measured
    if stated is None:
        raise UserError(f"{found.option}: it holds no scale_factor; give model.first_stage.scale, the factor of its latents")
    return stated


def stored_bytes(network: nn.Module, found: WeightFiles) -> int:
    """Bytes of the tensors in the files that are ``network``'s."""
    return sum(found.sizes[key] for key in {origin.key for origin in origins(network, found.shapes)[0].values()})


def _misfit(found: WeightFiles, architecture: str, difference: str) -> UserError:
    return UserError(f"{found.option}: does not fit {architecture} ({difference}); change one of the two")
