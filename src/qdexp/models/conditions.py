"""Example conditions: tensors of the right shapes and no meaning, for calls of a network beside x_t and t."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from diffusers import DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel
from hydra.utils import get_object
from torch import Tensor, nn

from qdexp.config import Model
from qdexp.models.networks import ClassUNet2DConditionModel

CLIP_TOKENS, T5_TOKENS, SD3_TOKENS = 77, 120, 333
"""Tokens of a prompt: of Stable Diffusion's text encoders, of PixArt-alpha's, and of all of Stable Diffusion 3's."""

_KNOWN = (DiTTransformer2DModel, PixArtTransformer2DModel, SD3Transformer2DModel, UNet2DConditionModel)

Condition = dict[str, Tensor | dict[str, Tensor]]
"""Named arguments of a network's call; entries lie along dimension 0, one a row."""


def example_condition(network: nn.Module, rows: int = 1, stated: Mapping[str, Sequence[int]] | None = None) -> Condition:
    """A condition that ``network`` accepts: zeros (masks: true), on its device; empty for unconditional and unknown classes.

    stated: ``model.example``: by name the shape of one row, [] for an integer.
    """
    device = _device(network)
    options = getattr(network, "config", {})
    if stated is not None:
        kinds = {name: torch.float32 if shape else torch.int64 for name, shape in stated.items()}
        return {name: torch.zeros(rows, *shape, dtype=kinds[name], device=device) for name, shape in stated.items()}
    if isinstance(network, SD3Transformer2DModel):
        return {
            "encoder_hidden_states": torch.zeros(rows, SD3_TOKENS, options["joint_attention_dim"], device=device),
            "pooled_projections": torch.zeros(rows, options["pooled_projection_dim"], device=device),
        }
    if isinstance(network, DiTTransformer2DModel | ClassUNet2DConditionModel):
        return {"class_labels": torch.zeros(rows, dtype=torch.int64, device=device)}
    if isinstance(network, PixArtTransformer2DModel):
        text = torch.zeros(rows, T5_TOKENS, options["caption_channels"], device=device)
        return {
            "encoder_hidden_states": text,
            "encoder_attention_mask": torch.ones(text.shape[:2], dtype=torch.bool, device=device),
        }
    if not isinstance(network, UNet2DConditionModel):
        return {}
    text = torch.zeros(rows, CLIP_TOKENS, options["cross_attention_dim"], device=device)
    if options["addition_embed_type"] != "text_time":
        return {"encoder_hidden_states": text}
    sizes = 6  # original height and width, top and left of the crop, target height and width
    pooled = options["projection_class_embeddings_input_dim"] - sizes * options["addition_time_embed_dim"]
    added = {"text_embeds": torch.zeros(rows, pooled, device=device), "time_ids": torch.zeros(rows, sizes, device=device)}
    return {"encoder_hidden_states": text, "added_cond_kwargs": added}


def has_example(model: Model) -> bool:
    """Whether the model's network can be called with ``example_row``: not where it takes conditions of its own kind, and
    ``model.example`` does not say of which shapes."""
    kind = get_object(model.network["_target_"])
    known = isinstance(kind, type) and issubclass(kind, _KNOWN)
    return model.condition is None or model.example is not None or known


def example_row(network: nn.Module, model: Model) -> tuple[Any, ...]:
    """One row that ``network`` can be called with: x_t, t and, if it takes one, a condition; all zeros."""
    device = _device(network)
    x_t, t = torch.zeros(1, *model.shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    return x_t, t, example_condition(network, stated=model.example)


def _device(network: nn.Module) -> torch.device:
    return next((value.device for value in network.parameters()), torch.device("cpu"))
