"""Bimodal shortcuts: the same function for every gain, and parts of a concatenation that lie a gain apart."""

import copy
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from hydra.utils import instantiate
from omegaconf import OmegaConf
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import qdexp
from qdexp import models
from qdexp.config import Model
from qdexp.errors import UserError
from qdexp.models import checkpoint
from qdexp.models.bimodal import AmplifiedResnetBlock, BimodalUNet2DModel
from qdexp.paths import conf_folder
from qdexp.quant import network as networks
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize
from qdexp.quant.blocks import first_row
from qdexp.quant.ranges import MinMax

BIMODAL = "qdexp.models.bimodal.BimodalUNet2DModel"
UNEQUAL = {"block_out_channels": [8, 24], "norm_num_groups": 8, "norm_eps": 1e-10}
"""A tiny U-Net whose deep and skip parts differ in width, and whose groups straddle no boundary. Random weights give features
of a variance so small that a usual eps would show."""


def at(model: Model, gain: float) -> Model:
    return replace(model, network={**model.network, "_target_": BIMODAL, "deep_gain": gain})


def build(model: Model) -> nn.Module:
    return models.build(model, channels_last=False)


def batch(model: Model) -> tuple[Tensor, Tensor]:
    """Four noises at four timesteps."""
    return torch.randn(4, *model.shape), torch.tensor([1, 100, 500, 999])


@torch.inference_mode()
def answer(network: nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    eps: Tensor = network(x_t, t)[0]
    return eps


@pytest.fixture(scope="module")
def embedded() -> Model:
    """The embedded model as its own config gives it."""
    given = OmegaConf.load(conf_folder() / "model" / "ddpm_fashion.yaml")
    return Model(**{str(key): value for key, value in OmegaConf.to_container(given, resolve=True).items()})  # type: ignore[union-attr]


@pytest.fixture
def unequal(tiny_architecture: dict[str, Any], tmp_path: Path) -> Model:
    """A tiny U-Net of 8 and 24 channels, its random weights in a file of ``tmp_path``."""
    architecture = {**tiny_architecture, **UNEQUAL}
    path = tmp_path / "model.safetensors"
    save_file(instantiate(architecture).state_dict(), path)
    return Model("unequal", str(path), [1, 8, 8], architecture, {})


@contextmanager
def shortcut_inputs(network: nn.Module) -> Iterator[dict[str, Tensor]]:
    """What the 1x1 shortcuts of the up path read, by their names."""
    seen: dict[str, Tensor] = {}
    layers = {name: layer for name, layer in network.named_modules() if name.startswith("up") and "conv_shortcut" in name}
    handles = [
        layer.register_forward_pre_hook(lambda _, args, name=name: seen.update({name: args[0]}))
        for name, layer in layers.items()
    ]
    yield seen
    for handle in handles:
        handle.remove()


@pytest.mark.parametrize("gain", [1, 2, 3, 4, 8, 16, 32, 64, 0.5])
@pytest.mark.parametrize("kind", ["embedded", "unequal"])
def test_full_precision_is_the_same_for_every_gain(request: pytest.FixtureRequest, kind: str, gain: float) -> None:
    model: Model = request.getfixturevalue(kind)
    example = batch(model)
    truth, own = answer(build(model), *example), answer(build(at(model, gain)), *example)
    assert torch.equal(own, truth) or gain != 1
    assert (own - truth).abs().max() < 2e-5 * truth.abs().max()


@pytest.mark.parametrize("kind", ["embedded", "unequal"])
def test_the_parts_of_a_concatenation_lie_a_gain_apart(request: pytest.FixtureRequest, kind: str) -> None:
    model: Model = request.getfixturevalue(kind)
    example = batch(model)
    plain, amplified = build(model), build(at(model, 16))
    with shortcut_inputs(plain) as before, shortcut_inputs(amplified) as after:
        answer(plain, *example)
        answer(amplified, *example)
    widths = {"embedded": [48] * 9, "unequal": [24, 24, 24, 8]}[kind]  # of the deep parts, by hand
    assert before.keys() == after.keys()
    for (name, x), deep in zip(before.items(), widths, strict=True):
        torch.testing.assert_close(after[name][:, :deep], 16 * x[:, :deep], rtol=1e-3, atol=1e-3)
        torch.testing.assert_close(after[name][:, deep:], x[:, deep:], rtol=1e-3, atol=1e-4)
        weight, own = (network.get_parameter(f"{name}.weight") for network in (plain, amplified))
        assert torch.equal(own[:, :deep] * 16, weight[:, :deep])
        assert torch.equal(own[:, deep:], weight[:, deep:])


def test_only_the_weights_of_shortcuts_differ_from_the_file(unequal: Model) -> None:
    file, own = load_file(unequal.weights), build(at(unequal, 4)).state_dict()
    assert file.keys() == own.keys()
    changed = {name for name in file if not torch.equal(file[name], own[name])}
    assert changed == {f"up_blocks.{level}.resnets.{index}.conv_shortcut.weight" for level in (0, 1) for index in (0, 1)}


def test_groups_that_straddle_a_boundary_are_refused(unequal: Model, tiny_architecture: dict[str, Any]) -> None:
    straddling = replace(unequal, network={**tiny_architecture, "_target_": BIMODAL, "deep_gain": 2})
    with pytest.raises(UserError, match=r"model\.network: .*a group of up_blocks\.0\.resnets\.1\.norm1 straddles .* 16"):
        build(straddling)


@pytest.mark.parametrize("gain", [0, -2, float("inf"), float("nan")])
def test_a_gain_that_has_no_inverse(unequal: Model, gain: float) -> None:
    with pytest.raises(UserError, match=r"^model\.network: .*deep_gain=.*positive"):
        build(at(unequal, gain))


def test_the_digest_beside_the_weights_is_still_checked(unequal: Model) -> None:
    Path(f"{unequal.weights}.sha256").write_text("0" * 64)
    with pytest.raises(UserError, match="digest"):
        build(at(unequal, 8))


def test_it_is_a_network_of_diffusers(unequal: Model, tmp_path: Path) -> None:
    network = build(at(unequal, 8))
    assert isinstance(network, BimodalUNet2DModel) and isinstance(network, UNet2DModel)
    assert network.config["deep_gain"] == 8
    assert network.config["block_out_channels"] == UNEQUAL["block_out_channels"]
    blocks = [block for name, block in network.named_modules() if isinstance(block, ResnetBlock2D) and name.startswith("up")]
    assert len(blocks) == 4 and all(type(block) is AmplifiedResnetBlock for block in blocks)


def test_a_copy_computes_with_its_own_weights(unequal: Model) -> None:
    network, example = build(at(unequal, 8)), batch(unequal)
    before = answer(network, *example)
    other = copy.deepcopy(network)
    assert torch.equal(answer(other, *example), before)
    nn.init.zeros_(network.get_parameter("up_blocks.0.resnets.0.conv_shortcut.weight"))
    assert torch.equal(answer(other, *example), before)
    assert not torch.equal(answer(network, *example), before)


@pytest.mark.parametrize(("weight_bits", "act_bits"), [(4, 8), (32, 8), (4, 32)])
def test_a_checkpoint_holds_divided_weights_and_divides_no_more(
    unequal: Model, tmp_path: Path, weight_bits: int, act_bits: int
) -> None:
    model, example = at(unequal, 8), batch(unequal)
    network = build(model)
    adapter = Adapter(network, first_row(example))
    networks.convert(network, networks.plan_bits(network, adapter.layers, weight_bits, act_bits), adapter.sites)
    networks.quantize_weights(network, MinMax(), quantize)
    networks.observe_activations(network, [example], MinMax())
    checkpoint.save(tmp_path / "checkpoint", network, model.network)
    again = qdexp.load(tmp_path / "checkpoint")
    assert isinstance(again, BimodalUNet2DModel)
    assert torch.equal(answer(again, *example), answer(network, *example))
