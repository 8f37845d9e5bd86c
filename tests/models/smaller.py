"""The models of our configs at small width: what the original's networks are made with, and what of the config that changes."""

from pathlib import Path
from typing import Any

import torch
from diffusers import DDPMScheduler
from hydra import compose, initialize_config_dir
from originals import OriginalUNet, restless
from pixel_originals import OriginalFirstStage
from torch import Tensor, nn

from qdexp.config import Config, Model
from qdexp.paths import conf_folder

SMALL: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "ldm_bedroom": (
        {"channels": 3, "base": 32, "mult": (1, 2), "attends": (2,), "head_width": 16, "layers": 1},
        {"base": 32, "mult": (1, 2), "latents": 3, "codes": 50, "layers": 1},
        {
            "layers_per_block": 1,
            "block_out_channels": [32, 64],
            "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
            "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
            "attention_head_dim": 16,
        },
        {"block_out_channels": [32, 64], "num_vq_embeddings": 50},
    ),
    "ldm_church": (
        {"channels": 4, "base": 32, "mult": (1, 2, 2), "attends": (1, 2), "heads": 4, "film": True, "layers": 1},
        {"base": 32, "mult": (1, 2, 2), "latents": 4, "codes": None, "layers": 1},
        {
            "layers_per_block": 1,
            "num_heads": 4,
            "block_out_channels": [32, 64, 64],
            "down_block_types": ["AttnDownBlock2D", "AttnDownBlock2D", "ResnetDownsampleBlock2D"],
            "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D", "AttnUpBlock2D"],
        },
        {"block_out_channels": [32, 64, 64]},
    ),
    "ldm_imagenet": (
        {"channels": 3, "base": 32, "mult": (1, 2), "attends": (2,), "context": 12, "layers": 1},
        {"base": 32, "mult": (1, 2), "latents": 3, "codes": 50, "layers": 1},
        {
            "layers_per_block": 1,
            "num_classes": 11,
            "cross_attention_dim": 12,
            "block_out_channels": [32, 64],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        },
        {"block_out_channels": [32, 64], "num_vq_embeddings": 50},
    ),
}
"""U-Net and first stage of the original, then the changes of both."""

PIXEL: tuple[dict[str, Any], dict[str, Any]] = (
    {"channels": 3, "base": 32, "mult": (1, 2, 2), "attends": (1,), "layers": 1},
    {
        "layers_per_block": 1,
        "block_out_channels": [32, 64, 64],
        "down_block_types": ["DownBlock2D", "AttnDownBlock2D", "DownBlock2D"],
        "up_block_types": ["UpBlock2D", "AttnUpBlock2D", "UpBlock2D"],
    },
)
"""Likewise ``ddim_cifar10``, which has no first stage."""


def config(name: str) -> Model:
    """A model as its own file gives it."""
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return Config.of(compose("config", [f"model={name}"])).model


def changes(name: str) -> tuple[dict[str, Any], dict[str, Any]]:
    """What of the config's network and of its first stage changes, where the model is small."""
    _, stage_config, unet_changes, stage_changes = SMALL[name]
    kinds = {"down": "DownEncoderBlock2D", "up": "UpDecoderBlock2D"}
    blocks = {f"{side}_block_types": [kind] * len(stage_config["mult"]) for side, kind in kinds.items()}
    return unet_changes, {"layers_per_block": 1, **blocks, **stage_changes}


def save_original(name: str, path: Path, scale: float | None = 0.4) -> tuple[OriginalUNet, OriginalFirstStage, Tensor]:
    """Writes the checkpoint of a small model as the original's training does; ``scale``: of its latents, None where it measured
    none. Returns its networks, and contexts of classes, which are in it where it has any."""
    unet_config, stage_config, unet_changes, _ = SMALL[name]
    unet, stage = OriginalUNet(**unet_config), OriginalFirstStage(**stage_config)
    restless(unet), restless(stage)
    if stage_config["codes"]:
        nn.init.normal_(stage.quantize.embedding.weight)
    classes = torch.randn(11, 12)
    with_classes = classes if "num_classes" in unet_changes else None
    state = state_dict(unet, stage, config(name).schedule, average=True, classes=with_classes, scale=scale)
    torch.save({"epoch": 3, "state_dict": state}, path)
    return unet.eval(), stage.eval(), classes


def state_dict(
    unet: nn.Module, stage: nn.Module, schedule: dict[str, Any], *, average: bool, classes: Tensor | None, scale: float | None
) -> dict[str, Tensor]:
    """What the original's training saves."""
    state = {f"model.diffusion_model.{name}": value for name, value in unet.state_dict().items()}
    if average:
        plain = {f"model_ema.diffusion_model{name.replace('.', '')}": value for name, value in unet.state_dict().items()}
        state = {
            name: torch.zeros_like(value) for name, value in state.items()
        } | plain  # the last weights are not the ones meant
        state |= {"model_ema.decay": torch.tensor(0.9999), "model_ema.num_updates": torch.tensor(7)}
    state |= {f"first_stage_model.{name}": value for name, value in stage.state_dict().items()}
    state |= {"betas": DDPMScheduler(**schedule).betas, "logvar": torch.zeros(1000), "alphas_cumprod_prev": torch.zeros(1000)}
    if classes is not None:
        state["cond_stage_model.embedding.weight"] = classes
    return state if scale is None else {**state, "scale_factor": torch.tensor(scale)}
