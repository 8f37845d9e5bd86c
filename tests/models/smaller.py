"""The models of our configs at small width: what the original's networks are made with, and what of the config that changes."""

from typing import Any

from omegaconf import OmegaConf

from qdexp.config import FirstStage, Model
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
    folder = conf_folder() / "model"
    given: Any = OmegaConf.load(folder / f"{name}.yaml")
    for base in given.pop("defaults", [])[:-1]:
        given = OmegaConf.merge(OmegaConf.load(folder / f"{base}.yaml"), given)
    plain: Any = OmegaConf.to_container(OmegaConf.create({"model": given}), resolve=True)
    values = {str(key): value for key, value in plain["model"].items()}
    return Model(**{**values, "first_stage": FirstStage(**values["first_stage"]) if "first_stage" in values else None})
