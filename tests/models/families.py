"""A tiny network of every family of models: the classes of our configs, with their kinds of blocks and conditions."""

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor, nn

from qdexp.config import Model
from qdexp.models.conditions import Condition, example_condition
from qdexp.quant import network as networks
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import first_row
from qdexp.quant.ranges import MinMax
from qdexp.quant.shortcuts import chosen_sizes

SMALL = {"sample_size": 8, "layers_per_block": 1, "norm_num_groups": 8}
WIDTHS: dict[str, Any] = {**SMALL, "block_out_channels": [16, 32]}
SDXL: dict[str, Any] = {
    "use_linear_projection": True,
    "transformer_layers_per_block": [1, 2],
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 4,
    "projection_class_embeddings_input_dim": 24 + 10,
}
TEXT: dict[str, Any] = {
    **WIDTHS,
    "cross_attention_dim": 12,
    "attention_head_dim": [2, 4],
    "down_block_types": ["CrossAttnDownBlock2D", "DownBlock2D"],
    "up_block_types": ["UpBlock2D", "CrossAttnUpBlock2D"],
}
TRANSFORMER: dict[str, Any] = {
    "sample_size": 8,
    "patch_size": 2,
    "in_channels": 4,
    "out_channels": 8,
    "num_layers": 2,
    "num_attention_heads": 2,
    "attention_head_dim": 8,
    "num_embeds_ada_norm": 10,
    "norm_elementwise_affine": False,
}


@dataclass(frozen=True)
class Family:
    """``splits``: whether it has shortcuts that can be split."""

    name: str
    architecture: dict[str, Any]
    channels: int
    splits: bool = True

    @property
    def shape(self) -> list[int]:
        return [self.channels, 8, 8]

    @property
    def model(self) -> Model:
        return Model(self.name, "random", self.shape, self.architecture, {})

    def network(self) -> nn.Module:
        torch.manual_seed(0)
        network: nn.Module = instantiate(self.architecture).eval().requires_grad_(False)
        return network

    def batch(self, network: nn.Module, rows: int = 4) -> tuple[Tensor, Tensor, Condition]:
        """x_t, t and a condition that is not all zeros."""
        generator = torch.Generator().manual_seed(1)

        def filled(value: Any) -> Any:
            if isinstance(value, dict):
                return {name: filled(entry) for name, entry in value.items()}
            if value.dtype == torch.bool:  # which tokens are no padding: of each row another number
                return torch.arange(value.shape[1]) <= torch.arange(1, rows + 1)[:, None]
            if value.is_floating_point():
                return torch.randn(value.shape, generator=generator)
            return torch.randint(0, 10, value.shape, generator=generator)

        x_t, t = torch.randn(rows, *self.shape, generator=generator), torch.randint(0, 1000, (rows,), generator=generator)
        return x_t, t, filled(example_condition(network, rows))

    def quantized(self, weight_bits: int, act_bits: int, split: bool = False) -> nn.Module:
        """The whole of post-training quantization."""
        network = self.network()
        batch = self.batch(network)
        adapter = Adapter(network, first_row(batch))
        if split:
            networks.split(network, chosen_sizes(adapter.concatenations, "skip"))
        networks.convert(network, networks.plan_bits(network, adapter.layers, weight_bits, act_bits), adapter.sites)
        networks.quantize_weights(network, MinMax(), nearest)
        networks.observe_activations(network, [batch], MinMax())
        return network


def family(name: str, target: str, architecture: dict[str, Any], channels: int, splits: bool = True) -> Family:
    ends = {} if "out_channels" in architecture else {"in_channels": channels, "out_channels": channels}
    return Family(name, {"_target_": target, **ends, **architecture}, channels, splits)


def all_families() -> Iterator[Family]:
    attends = {"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]}
    yield family("ddpm", "diffusers.UNet2DModel", {**WIDTHS, **attends, "attention_head_dim": None}, 3)
    yield family("ldm", "diffusers.UNet2DModel", {**WIDTHS, **attends, "attention_head_dim": 8}, 3)
    film: dict[str, Any] = {
        **WIDTHS,
        "num_heads": 4,
        "down_block_types": ["AttnDownBlock2D", "ResnetDownsampleBlock2D"],
        "up_block_types": ["ResnetUpsampleBlock2D", "AttnUpBlock2D"],
        "downsample_type": "resnet",
        "upsample_type": "resnet",
        "resnet_time_scale_shift": "scale_shift",
        "attention_head_dim": None,
        "attn_norm_num_groups": 8,
    }
    yield family("ldm_church", "qdexp.models.networks.HeadsUNet2DModel", film, 4)
    classes = {**TEXT, "num_classes": 11, "attention_head_dim": 1}
    yield family("ldm_imagenet", "qdexp.models.networks.ClassUNet2DConditionModel", classes, 3)
    yield family("sd", "diffusers.UNet2DConditionModel", TEXT, 4)
    yield family("sdxl", "diffusers.UNet2DConditionModel", {**TEXT, **SDXL}, 4)
    yield family("dit", "diffusers.DiTTransformer2DModel", TRANSFORMER, 4, splits=False)
    pixart = {**TRANSFORMER, "num_embeds_ada_norm": 1000, "norm_type": "ada_norm_single", "caption_channels": 12}
    yield family("pixart", "qdexp.models.networks.PixArtModel", {**pixart, "cross_attention_dim": 16}, 4, splits=False)


FAMILIES = list(all_families())
