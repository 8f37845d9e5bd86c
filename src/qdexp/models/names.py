"""Names of a network's tensors in the files that they come from.

    own       as in the network; diffusers' attentions of before 2023 say query, key, value and proj_attn
    compvis   checkpoints of CompVis' latent-diffusion and stable-diffusion, see `compvis`
    ddim      the U-Net of the DDPM and DDIM authors, as in the CIFAR-10 checkpoint that Q-Diffusion starts from

Each tensor has one *origin* in the file: a key and, where three projections lie in one tensor, which of them.
"""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from torch import Tensor, nn

PIXEL_ATTENTION = {"group_norm": "norm", "to_q": "q", "to_k": "k", "to_v": "v", "to_out.0": "proj_out"}
"""Attention whose projections are 1x1 convolutions, by its names here and there."""

_DDIM = {"time_embedding.linear_1": "temb.dense.0", "time_embedding.linear_2": "temb.dense.1", "conv_norm_out": "norm_out"}
_OLD_ATTENTION = {"to_q": "query", "to_k": "key", "to_v": "value", "to_out.0": "proj_attn"}


@dataclass(frozen=True)
class Origin:
    """The origin of a tensor. ``part``: which of the three projections that ``key`` holds for each of ``heads`` heads."""

    key: str
    part: int | None = None
    heads: int = 1

    def take(self, found: Tensor, shape: tuple[int, ...]) -> Tensor:
        """The tensor of ``shape`` out of what the file has; a 1x1 convolution [out, in, 1] is a linear layer [out, in]."""
        if self.part is not None:
            # rows are ordered by head, then q k v, then channel of the head: the original's "legacy" order
            found = found.unflatten(0, (self.heads, 3, -1))[:, self.part].flatten(0, 1)
        return found.reshape(shape)

    def fits(self, found: tuple[int, ...], shape: tuple[int, ...]) -> bool:
        """Whether a tensor of shape ``found`` gives one of ``shape``."""
        rows = shape[0] * 3 if self.part is not None else shape[0]
        return _without_kernel(found) == _without_kernel((rows, *shape[1:]))


def _without_kernel(shape: tuple[int, ...]) -> tuple[int, ...]:
    """[out, in] for a 1x1 kernel [out, in, 1, 1]: the same numbers."""
    return shape[:2] if all(size == 1 for size in shape[2:]) else shape


def renamed(name: str, names: Mapping[str, str]) -> str:
    """``name``, its module (all but the last word) replaced where ``names`` has it, or ends in one that it has."""
    module, _, kind = name.rpartition(".")
    for own, other in names.items():
        if module == own or module.endswith(f".{own}"):
            return f"{module[: len(module) - len(own)]}{other}.{kind}"
    return name


def own_origins(network: nn.Module, keys: Iterable[str]) -> dict[str, Origin]:
    """The origins of all tensors in a file that has the names of diffusers, or older ones where it lacks those."""
    found = set(keys)
    older = {name: renamed(name, _OLD_ATTENTION) for name in network.state_dict() if name not in found}
    return {name: Origin(older[name] if older.get(name) in found else name) for name in network.state_dict()}


def pixel_name(name: str, levels: int) -> str:
    """The name that the DDPM and VQGAN authors give a tensor of a U-Net, an encoder or a decoder of ``levels`` levels."""
    if match := re.fullmatch(r"(|encoder\.|decoder\.)mid_block\.(resnets|attentions)\.(\d)\.(.+)", name):
        block = "attn_1" if match[2] == "attentions" else f"block_{int(match[3]) + 1}"
        return f"{match[1]}mid.{block}.{_pixel_layer(match[4])}"
    if match := re.fullmatch(r"(|encoder\.|decoder\.)(down|up)_blocks\.(\d+)\.(\w+)\.(\d+)\.(.+)", name):
        prefix, side, level, kind, index, rest = match.groups()
        place = int(level) if side == "down" else levels - 1 - int(level)  # the original counts both from the image
        block = {"resnets": f"block.{index}", "attentions": f"attn.{index}"}.get(kind, f"{side}sample")
        return f"{prefix}{side}.{place}.{block}.{_pixel_layer(rest)}"
    return renamed(name, _DDIM)


def _pixel_layer(name: str) -> str:
    return renamed(name, {**PIXEL_ATTENTION, "time_emb_proj": "temb_proj", "conv_shortcut": "nin_shortcut"})


def levels_of(network: nn.Module) -> int:
    """The resolutions of one of diffusers' U-Nets or autoencoders."""
    levels: int = len(network.config.block_out_channels)  # type: ignore[union-attr, arg-type]
    return levels
