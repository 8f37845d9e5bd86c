"""Checkpoints of CompVis' latent-diffusion and stable-diffusion, as diffusers' networks see them.

    model.diffusion_model.*             the U-Net as it was trained last
    model_ema.diffusion_model*          its moving average, names without dots: what the original samples with, if it is there
    first_stage_model.*                 the autoencoder (VQ or KL)
    cond_stage_model.embedding.weight   contexts of the classes
    betas, ..., scale_factor            the schedule; the latents' scale where it was measured on the data

The original's U-Net and diffusers' compute the same in another order of the same blocks: what is a place in one list there
(``input_blocks.4.1``) is a level and an index here. Attention without context keeps q, k and v of each head in one tensor.
"""

import re
from collections.abc import Iterable
from dataclasses import replace

from torch import nn

from qdexp.models.names import Origin, levels_of, pixel_name, renamed

UNET, AVERAGE, FIRST_STAGE = "model.diffusion_model.", "model_ema.diffusion_model", "first_stage_model."
CLASSES = "cond_stage_model.embedding.weight"

BESIDE = re.compile(
    r"betas|alphas_cumprod(_prev)?|sqrt_alphas_cumprod|(sqrt|log)_one_minus_alphas_cumprod|sqrt_recip(m1)?_alphas_cumprod"
    r"|posterior_(variance|log_variance_clipped|mean_coef[12])|lvlb_weights|logvar|scale_factor"
    r"|model_ema\.(decay|num_updates)|(first_stage_model|cond_stage_model)\..*"
)
"""The tensors beside the U-Net: the schedule, counters, the other networks."""

_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_LAYERS = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_ATTENTION = {"group_norm": "norm", "to_q": "qkv", "to_k": "qkv", "to_v": "qkv", "to_out.0": "proj_out"}
_PROJECTIONS = ("to_q", "to_k", "to_v")


def is_compvis(keys: Iterable[str]) -> bool:
    """Whether a file with these keys is such a checkpoint."""
    return any(key.startswith((UNET, FIRST_STAGE)) for key in keys)


def unet_origins(network: nn.Module, keys: Iterable[str]) -> tuple[dict[str, Origin], set[str]]:
    """The origins of a U-Net's tensors, and the keys that all of them together ought to use."""
    found = set(keys)
    average = any(key.startswith(AVERAGE) for key in found)
    beside = {key for key in found if BESIDE.fullmatch(key) or (average and key.startswith(UNET))}
    named = {name: _origin(name, network, average) for name in network.state_dict()}
    return named, found - beside | ({CLASSES} & {origin.key for origin in named.values()})


def first_stage_origins(network: nn.Module, keys: Iterable[str]) -> tuple[dict[str, Origin], set[str]]:
    """The origins of an autoencoder's tensors, ``diffusers.VQModel`` or ``AutoencoderKL``. Tensors of its training loss are not
    needed."""
    levels = levels_of(network)
    wanted = {key for key in keys if key.startswith(FIRST_STAGE) and not key.startswith(f"{FIRST_STAGE}loss.")}
    return {name: Origin(FIRST_STAGE + pixel_name(name, levels)) for name in network.state_dict()}, wanted


def _origin(name: str, network: nn.Module, average: bool) -> Origin:
    if name == "class_context.weight":
        return Origin(CLASSES)  # not of the U-Net there, so that it has no moving average
    origin = unet_origin(name, network)
    return replace(origin, key=AVERAGE + origin.key.replace(".", "") if average else UNET + origin.key)


def unet_origin(name: str, network: nn.Module) -> Origin:
    """The origin of the tensor ``name`` of diffusers' U-Net ``network`` in a state dict of the original's UNetModel."""
    key = unet_name(name, network)
    module = name.rpartition(".")[0]
    attention, _, projection = module.rpartition(".")
    if projection in _PROJECTIONS and ".transformer_blocks." not in name:
        heads: int = network.get_submodule(attention).heads  # type: ignore[assignment]
        return Origin(key, _PROJECTIONS.index(projection), heads)
    return Origin(key)


def unet_name(name: str, network: nn.Module) -> str:
    """The original UNetModel's name for the tensor ``name`` of diffusers' U-Net ``network``."""
    if match := re.fullmatch(r"mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        place = 1 if match[1] == "attentions" else 2 * int(match[2])
        return f"middle_block.{place}.{_layer(match[3], match[1])}"
    match = re.fullmatch(r"(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name)
    if match is None:
        return renamed(name, _ENDS)
    side, level, kind, index, rest = match[1], int(match[2]), match[3], int(match[4]), match[5]
    layers = int(network.config.layers_per_block) + 1  # type: ignore[union-attr, arg-type]
    if side == "down":  # conv_in is number 0, and a level ends with its downsampler
        number = 1 + level * layers + (layers - 1 if kind == "downsamplers" else index)
        inner = 1 if kind == "attentions" else 0
        return f"input_blocks.{number}.{inner}.{_layer(rest, kind)}"
    number = level * layers + (layers - 1 if kind == "upsamplers" else index)  # the upsampler follows in the last one's place
    attends = hasattr(network.get_submodule(f"up_blocks.{level}"), "attentions")
    inner = {"resnets": 0, "attentions": 1}.get(kind, 1 + attends)
    return f"output_blocks.{number}.{inner}.{_layer(rest, kind)}"


def _layer(name: str, kind: str) -> str:
    if kind == "attentions":
        return name if name.startswith("transformer_blocks.") else renamed(name, _ATTENTION)
    if kind == "downsamplers" and name.startswith("conv."):
        return f"op.{name.removeprefix('conv.')}"
    return renamed(name, _LAYERS)
