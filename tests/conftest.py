"""What all tests share: one tiny U-Net."""

from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

TINY_UNET: dict[str, Any] = {
    "_target_": "diffusers.UNet2DModel",
    "sample_size": 8,
    "in_channels": 1,
    "out_channels": 1,
    "layers_per_block": 1,
    "block_out_channels": [8, 16],
    "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
    "up_block_types": ["AttnUpBlock2D", "UpBlock2D"],
    "norm_num_groups": 4,
    "attention_head_dim": 8,
    "dropout": 0.1,
}


@pytest.fixture
def tiny_architecture() -> dict[str, Any]:
    """The class and arguments of `tiny_unet`, as a checkpoint records them."""
    return dict(TINY_UNET)


@pytest.fixture
def tiny_unet() -> UNet2DModel:
    """A new U-Net of 45 thousand random parameters: images [n, 1, 8, 8], attention of two heads, dropout, eval mode."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return UNet2DModel(**{key: value for key, value in TINY_UNET.items() if key != "_target_"}).eval()


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)
