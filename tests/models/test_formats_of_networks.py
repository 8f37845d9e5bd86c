"""Every choice of ``quant`` on small networks: quantized, saved, and read again with the same bits."""

import copy
from collections.abc import Callable
from dataclasses import asdict
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra import compose, initialize_config_dir
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor, nn

from qdexp.config import Config, Quant
from qdexp.models import checkpoint
from qdexp.paths import conf_folder
from qdexp.quant import MinMax, PerChannel, PerGroup, PerTensor, convert, observe_activations, plan_bits, quantize_weights
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.formats import ActFormat, WeightFormat
from qdexp.quant.granularity import whole
from qdexp.quant.layers import to_quantized
from qdexp.quant.network import activation_quantizers, quantized_layers, set_activation_mode, split
from qdexp.quant.packed import group_bytes, schemes_of
from qdexp.quant.shortcuts import chosen_sizes

CHOICES = sorted(path.stem for path in (conf_folder() / "quant").glob("*.yaml"))
ELSEWHERE = ("int4_g16", "w8a8_dynamic", "fp8", "fp8_tensor", "mxfp8", "nvfp4")
"""Those that are tried on other networks than the U-Net too."""
T = torch.tensor([7, 300, 800])
IMAGES = torch.Generator().manual_seed(3)
NETWORKS: dict[str, tuple[dict[str, Any], Callable[[], Batch]]] = {
    "unet": (
        {"_target_": "diffusers.UNet2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "layers_per_block": 1,
         "block_out_channels": [24, 40], "down_block_types": ["DownBlock2D", "AttnDownBlock2D"],
         "up_block_types": ["AttnUpBlock2D", "UpBlock2D"], "norm_num_groups": 4, "attention_head_dim": 20},
        lambda: (torch.randn(3, 1, 8, 8), T),
    ),
    "dit": (
        {"_target_": "diffusers.DiTTransformer2DModel", "sample_size": 8, "in_channels": 1, "out_channels": 1, "patch_size": 2,
         "num_layers": 1, "num_attention_heads": 2, "attention_head_dim": 20, "num_embeds_ada_norm": 3},
        lambda: (torch.randn(3, 1, 8, 8), T, {"class_labels": torch.tensor([0, 1, 2])}),
    ),
    "cross": (
        {"_target_": "diffusers.UNet2DConditionModel", "sample_size": 8, "in_channels": 1, "out_channels": 1,
         "layers_per_block": 1, "block_out_channels": [24, 24], "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
         "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"], "mid_block_type": None, "norm_num_groups": 4,
         "attention_head_dim": 12, "cross_attention_dim": 20},
        lambda: (torch.randn(3, 1, 8, 8), T, {"encoder_hidden_states": torch.randn(3, 5, 20)}),
    ),
    "sd3": (
        {"_target_": "diffusers.SD3Transformer2DModel", "sample_size": 8, "patch_size": 2, "in_channels": 1, "out_channels": 1,
         "num_layers": 2, "num_attention_heads": 2, "attention_head_dim": 20, "joint_attention_dim": 20,
         "caption_projection_dim": 40, "pooled_projection_dim": 20, "pos_embed_max_size": 4},
        lambda: (torch.randn(3, 1, 8, 8), T,
                 {"encoder_hidden_states": torch.randn(3, 5, 20), "pooled_projections": torch.randn(3, 20)}),
    ),
}  # fmt: skip


@cache
def quant_of(choice: str, *options: str) -> Quant:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return Config.of(compose("config", [f"quant={choice}", *options])).quant


@cache
def made(name: str) -> tuple[nn.Module, Batch, Adapter]:
    architecture, inputs = NETWORKS[name]
    torch.manual_seed(0)
    network = instantiate(architecture).eval()
    batch = inputs()
    return network, batch, Adapter(network, first_row(batch))


def quantized(name: str, quant: Quant, parts: bool = False) -> tuple[nn.Module, Batch]:
    original, batch, adapter = made(name)
    network = copy.deepcopy(original)
    plan = plan_bits(network, adapter.layers, quant.weight_bits, quant.act_bits, quant.first_last_bits, quant.layers)
    if parts:
        split(network, chosen_sizes(adapter.concatenations, "skip+conv1"))
    formats = WeightFormat(quant.weight_bits, **asdict(quant.weight)), ActFormat(quant.act_bits, **asdict(quant.act))
    convert(network, plan, adapter.sites, weight=formats[0], act=formats[1], softmax_bits=quant.softmax_bits)
    quantize_weights(network, MinMax(), quantize)
    observe_activations(network, [batch], MinMax())
    return network, batch


@torch.inference_mode()
def output(network: nn.Module, batch: Batch) -> Tensor:
    x_t, t, *condition = batch
    found: Tensor = network(x_t, timestep=t, **(condition[0] if condition else {}))[0]
    return found


@pytest.mark.parametrize(
    ("name", "choice"), [(name, one) for name in NETWORKS for one in CHOICES if name == "unet" or one in ELSEWHERE]
)
def test_it_is_reloaded_with_the_same_bits(name: str, choice: str, tmp_path: Path) -> None:
    network, batch = quantized(name, quant_of(choice), parts=name == "unet")
    expected = output(network, batch)
    full = output(made(name)[0], batch)
    assert 0 < (expected - full).norm() / full.norm() < (1.5 if choice.startswith(("w2", "w3")) else 0.7)
    checkpoint.save(tmp_path, network, NETWORKS[name][0])
    again = checkpoint.load(tmp_path)
    assert torch.equal(output(again, batch), expected)
    for (one, mine), (other, same) in zip(network.named_buffers(), again.named_buffers(), strict=True):
        assert one == other
        assert torch.equal(mine, same)


@pytest.mark.parametrize("choice", ["int4_g16", "int4_g64", "nvfp4", "mxfp4", "fp8", "w8a8_dynamic"])
def test_which_grids_a_network_has(choice: str) -> None:
    """Groups along the axes over which products sum; first and last layer, and the softmax, in static integers of 8 bits."""
    quant = quant_of(choice)
    network, _ = quantized("unet", quant)
    layers, (first, last) = dict(quantized_layers(network)), ("conv_in", "conv_out")
    for name, quantizer in activation_quantizers(network):
        scheme, kind = quantizer.scheme, name.rpartition(".")[2]
        ends = name.startswith((first, last)) and quant.act_bits != 8
        if kind == "probability" or ends:
            assert (scheme.number, scheme.bits, scheme.time, whole(scheme.granularity)) == ("int", 8, "static", PerTensor())
            continue
        layer = layers.get(name.removesuffix(".input_quantizer"))
        axis = {"query": -1, "key": -1, "value": -2}.get(kind, 1 if layer is not None and layer.weight.ndim == 4 else -1)
        assert scheme.granularity == PerGroup(quant.act.group, axis)
        assert (scheme.number, scheme.time, scheme.scale) == (quant.act.number, "dynamic", quant.act.scale)
    for name, layer in layers.items():
        assert layer.weight_scheme is not None
        if name in (first, last) and quant.weight_bits != 8:
            assert (layer.weight_scheme.number, layer.weight_scheme.granularity) == ("int", PerChannel())
        elif layer.weight.shape[1] < 16 or quant.weight.granularity == "per_channel":
            assert layer.weight_scheme.granularity == PerChannel()
        else:
            assert layer.weight_scheme.granularity == PerGroup(quant.weight.group, 1)


def test_of_other_bits_than_the_formats_are_integers(tiny_unet: nn.Module) -> None:
    options = "quant.layers={mid_block*: {weight_bits: 8, act_bits: 6}}"
    network, _ = quantized("unet", quant_of("mxfp4", options))
    for name, layer in quantized_layers(network):
        if name.startswith("mid_block"):
            assert str(layer.weight_scheme) == "8 bits, per channel"
            assert isinstance(layer.input_quantizer, ActivationQuantizer)
            assert str(layer.input_quantizer.scheme) == "6 bits, per tensor"


def test_depthwise_convolutions_and_those_of_few_channels_keep_a_scale_a_channel() -> None:
    weight = WeightFormat(4, granularity="per_group", group=16, scale="bfloat16")
    for layer in (nn.Conv2d(32, 32, 3, groups=32), nn.Conv2d(32, 32, 3, groups=2), nn.Conv2d(15, 8, 1), nn.Linear(8, 8)):
        scheme = weight.scheme(4, layer)
        assert scheme is not None
        assert scheme.granularity == PerChannel()
    assert str(weight.scheme(4, nn.Conv2d(40, 8, 1), (24, 16))) == "4 bits, groups of 16, parts 24+16, scales in bfloat16"
    assert str(weight.scheme(4, nn.Conv2d(40, 8, 1), (32, 8))) == "4 bits, per channel, parts 32+8, scales in bfloat16"


@pytest.mark.parametrize(
    ("choice", "bits"),
    [("int4_g16", 4 + 20 / 16), ("int4_g64", 4 + 20 / 64), ("mxfp4", 4 + 8 / 32), ("nvfp4", 4 + 8 / 16), ("mxfp8", 8 + 8 / 32)],
)
def test_stored_and_nominal_size_count_the_scales(choice: str, bits: float, tmp_path: Path) -> None:
    network, quant = nn.Sequential(nn.Linear(256, 64)), quant_of(choice)
    plan = plan_bits(network, ["0"], quant.weight_bits, 32, None)
    convert(network, plan, weight=WeightFormat(**asdict(quant.weight)))
    quantize_weights(network, MinMax(), quantize)
    parameters = 64 * 256
    expected = parameters * bits / 8 + (4 if choice == "nvfp4" else 0)  # a float32
    groups = group_bytes(schemes_of(network))
    assert checkpoint.nominal_bytes(parameters, quant.weight_bits, 0, groups) == expected
    checkpoint.save(tmp_path, network, {"_target_": "torch.nn.Sequential"})
    stored = load_file(tmp_path / checkpoint.TENSORS)
    packed = {name: value.nbytes for name, value in stored.items() if name.startswith("quantized.")}
    assert sum(packed.values()) == expected


@pytest.mark.parametrize(
    ("choice", "made", "shape", "parts"),
    [
        ("int4_g16", lambda: nn.Linear(40, 4), (2, 5, 40), None),
        ("nvfp4", lambda: nn.Conv2d(64, 4, 1), (2, 64, 3, 3), (40, 24)),
    ],
)
def test_layers_are_compiled_whole(
    choice: str, made: Callable[[], nn.Module], shape: tuple[int, ...], parts: tuple[int, ...] | None
) -> None:
    """A linear layer, and a convolution that reads a concatenation, whose last groups are short; to compile takes seconds."""
    layer, quant = made(), quant_of(choice)
    act = ActFormat(quant.act_bits, **asdict(quant.act))
    to_quantized(layer, None, act.scheme(quant.act_bits, 1 if len(shape) == 4 else -1, parts))
    set_activation_mode(layer, "on")
    compiled: Any = torch.compile(layer, fullgraph=True, backend="aot_eager")
    x = torch.randn(shape)
    with torch.no_grad():
        assert torch.allclose(compiled(x), layer(x), atol=1e-6)
