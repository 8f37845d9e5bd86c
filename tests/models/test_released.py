"""The importer of released checkpoints: the network it makes computes as the authors' code does, or one line names the key."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from originals import OriginalUNet, restless
from pixel_originals import OriginalPixelUNet
from quantized_originals import quantized
from smaller import PIXEL, SMALL, config
from torch import Tensor, nn

import qdexp
from qdexp import models
from qdexp.cell import Cell
from qdexp.config import Model, Quant
from qdexp.errors import UserError
from qdexp.models import checkpoint, released
from qdexp.quant.network import quantized_layers
from qdexp.quant.scheme import Split

W4A8 = Quant(weight_bits=4, act_bits=8, softmax_bits=8, first_last_bits=None)
STEPS = torch.tensor([3, 500, 999])
CONTEXT = torch.randn(3, 5, 12, generator=torch.Generator().manual_seed(0))


def small(name: str) -> tuple[Model, Any, tuple[Tensor, ...]]:
    """A model at small width, the original's network, and what that is called with."""
    torch.manual_seed(0)
    if name == "ddim_cifar10":
        unet_config, changes = PIXEL
        unet: nn.Module = OriginalPixelUNet(**unet_config)
    elif name == "sd_v1_4":
        unet_config, _, changes, _ = SMALL["ldm_imagenet"]
        changes = {**{key: value for key, value in changes.items() if key != "num_classes"}, "attention_head_dim": 2}
        unet_config = {**unet_config, "channels": 4, "heads": 2}
        unet = OriginalUNet(**unet_config)
    else:
        unet_config, _, changes, _ = SMALL[name]
        if name == "ldm_church":  # heads of 16 channels, like the others: 16^(1/4) is exact
            unet_config = {**unet_config, "mult": (1, 1, 1), "heads": 2}
            changes = {**changes, "block_out_channels": [32, 32, 32], "num_heads": 2}
        unet = OriginalUNet(**unet_config)
    model = config(name)
    model = replace(model, weights="random", network={**model.network, **changes})
    batch = (torch.randn(3, model.shape[0], 16, 16), STEPS)
    return model, restless(unet), (*batch, CONTEXT) if name == "sd_v1_4" else batch


def assert_same(network: nn.Module, truth: nn.Module, batch: tuple[Tensor, ...]) -> None:
    """In double precision: in single, the last bit of a sum decides a rounding here and there."""
    x_t, t, *context = (part.double() if part.is_floating_point() else part for part in batch)
    named = {"encoder_hidden_states": context[0]} if context else {}
    wanted, own = truth.double()(x_t, t, *context), network.double()(x_t, t, **named)[0]
    torch.testing.assert_close(own, wanted, rtol=0, atol=1e-5 * wanted.abs().max().item())


def save(network: nn.Module, path: Path, prefix: str = "model.") -> Path:
    """As the authors do, whose network is ``model`` in another."""
    torch.save({f"{prefix}{name}": value for name, value in network.state_dict().items()}, path)
    return path


def imported(model: Model, file: Path, quant: Quant) -> nn.Module:
    network = models.build(replace(model, weights="random"), channels_last=False)
    released.fill(network, file, quant)
    return network


CASES: dict[str, tuple[str, Quant, dict[str, Any]]] = {
    "pixels, symmetric, split": ("ddim_cifar10", W4A8, {"symmetric": True, "split": True}),
    "pixels, ranges of a search": ("ddim_cifar10", W4A8, {"shrink": 0.6}),
    "latents, symmetric": ("ldm_bedroom", W4A8, {"symmetric": True}),
    "latents, 8 bits, split": ("ldm_bedroom", replace(W4A8, weight_bits=8), {"split": True}),
    "heads by number": ("ldm_church", W4A8, {}),
    "text, softmax of 16 bits": ("sd_v1_4", replace(W4A8, softmax_bits=16), {"split": True}),
}


@torch.inference_mode()
@pytest.mark.parametrize("case", CASES)
def test_the_imported_network_computes_what_the_released_code_computes(case: str, tmp_path: Path) -> None:
    name, quant, options = CASES[case]
    model, unet, batch = small(name)
    full = unet(*batch)
    truth = quantized(unet, batch, quant.weight_bits, quant.act_bits, quant.softmax_bits, **options)
    file = save(truth, tmp_path / "ckpt.pth")
    assert (truth(*batch) - full).norm() / full.norm() > 0.01
    released.check(model, file, quant)
    network = imported(model, file, quant)
    assert any(isinstance(layer.weight_scheme.granularity, Split) for _, layer in quantized_layers(network)
               if layer.weight_scheme) == options.get("split", False)  # fmt: skip
    checkpoint.save(tmp_path / "checkpoint", network, model.network)
    assert_same(qdexp.load(tmp_path / "checkpoint"), truth, batch)


@torch.inference_mode()
def test_weights_alone(tmp_path: Path) -> None:
    """The released files of weights alone are those with activations too."""
    model, unet, batch = small("ldm_bedroom")
    truth = quantized(unet, batch)
    file = save(truth, tmp_path / "ckpt.pth")
    for module in list(truth.modules()):
        for name in [name for name, _ in module.named_children() if "act_quantizer" in name]:
            setattr(module, name, nn.Identity())
    network = imported(model, file, replace(W4A8, act_bits=32))
    assert_same(network, truth, batch)
    save(truth, file)
    released.check(model, file, replace(W4A8, act_bits=32))
    with pytest.raises(UserError, match=r"holds no \*\.act_quantizer\.\*, only weights are quantized; give quant\.act_bits=32"):
        released.check(model, file, W4A8)


@torch.inference_mode()
def test_a_zero_point_outside_the_levels_is_kept(tmp_path: Path) -> None:
    """Of a channel whose weights are all of one sign."""
    model, unet, batch = small("ddim_cifar10")
    with torch.no_grad():
        unet.conv_in.weight[0].abs_().add_(1)
    truth = quantized(unet, batch, 8)
    assert truth.conv_in.weight_quantizer.zero_point.min() < 0
    file, quant = save(truth, tmp_path / "ckpt.pth"), replace(W4A8, weight_bits=8)
    network = imported(model, file, quant)
    checkpoint.save(tmp_path / "checkpoint", network, model.network)
    assert_same(qdexp.load(tmp_path / "checkpoint"), truth, batch)


Change = Callable[[dict[str, Tensor]], Any]
ACT, WEIGHT = "model.out.2.act_quantizer", "model.out.2.weight_quantizer"
CHANGES: dict[str, Change] = {
    "model.out.2.weight is missing": lambda s: s.pop("model.out.2.weight"),
    "model.out.0.bias is missing": lambda s: s.pop("model.out.0.bias"),
    f"{ACT}.delta is missing": lambda s: s.pop(f"{ACT}.delta"),
    f"{WEIGHT}.alpha has shape (3, 2), not one for (3, 32, 3, 3)": lambda s: s.update({f"{WEIGHT}.alpha": torch.ones(3, 2)}),
    "model.label_emb.weight has no place in UNet2DModel": lambda s: s.update({"model.label_emb.weight": torch.ones(3)}),
    f"{WEIGHT}.zero_point is no whole number": lambda s: s[f"{WEIGHT}.zero_point"].add_(0.25),
    f"{ACT}.delta is not positive throughout": lambda s: s[f"{ACT}.delta"].neg_(),
    f"{ACT}.zero_point is [256.0], which 8 bits do not reach": lambda s: s[f"{ACT}.zero_point"].fill_(256),
    "model.input_blocks.3.1.attention.qkv_matmul.act_quantizer_k.delta is missing": lambda s: s.pop(
        "model.input_blocks.3.1.attention.qkv_matmul.act_quantizer_k.delta"
    ),
    f"{WEIGHT}_0.alpha is not the rest of 32 input channels": lambda s: s.update({f"{WEIGHT}_0.alpha": torch.ones(3, 2, 3, 3)}),
    "it holds no model.*.weight_quantizer.*": lambda s: [s.pop(key) for key in list(s) if "weight_quantizer" in key],
}


@pytest.fixture(scope="module")
def bedroom(tmp_path_factory: pytest.TempPathFactory) -> tuple[Model, dict[str, Tensor]]:
    model, unet, batch = small("ldm_bedroom")
    return model, torch.load(save(quantized(unet, batch), tmp_path_factory.mktemp("released") / "ckpt.pth"))


def refused(model: Model, state: dict[str, Any], path: Path, quant: Quant = W4A8) -> str:
    torch.save(state, path)
    with pytest.raises(UserError) as caught:
        released.check(model, path, quant)
    message = str(caught.value)
    assert message.startswith(f"quantizer.steps.released.file={path}: ") and "\n" not in message
    return message


@pytest.mark.parametrize("told", CHANGES)
def test_what_does_not_fit_is_named(bedroom: tuple[Model, dict[str, Tensor]], told: str, tmp_path: Path) -> None:
    model, state = bedroom[0], {name: value.clone() for name, value in bedroom[1].items()}
    CHANGES[told](state)
    assert told in refused(model, state, tmp_path / "ckpt.pth")


@pytest.mark.parametrize("bits", [2, 3, 5, 8])
def test_other_bits_than_those_of_the_file_are_refused(bedroom: Any, bits: int, tmp_path: Path) -> None:
    message = refused(bedroom[0], bedroom[1], tmp_path / "ckpt.pth", replace(W4A8, weight_bits=bits))
    assert "weight_quantizer.zero_point is that of 4 bits; give quant.weight_bits=4" in message


def test_a_transformer_is_refused(bedroom: Any, tmp_path: Path) -> None:
    message = refused(config("dit_xl_256"), bedroom[1], tmp_path / "ckpt.pth")
    assert "such files are of U-Nets, not of DiTTransformer2DModel" in message


def test_a_file_that_could_run_code_is_refused(bedroom: Any, tmp_path: Path) -> None:
    message = refused(bedroom[0], {"hook": print}, tmp_path / "ckpt.pth")
    assert "could run code" in message


def test_a_cell_measures_a_released_checkpoint(
    cell_of: Callable[..., Cell], executed: Callable[..., list[str]], tmp_path: Path
) -> None:
    unet = restless(OriginalPixelUNet(1, 32, (1, 1), (1,), layers=1))
    save(unet, tmp_path / "full.ckpt", prefix="")
    file = save(quantized(unet, (torch.randn(3, 1, 28, 28), STEPS)), tmp_path / "ckpt.pth")
    network = {
        **{"sample_size": 28, "in_channels": 1, "out_channels": 1, "layers_per_block": 1, "block_out_channels": [32, 32]},
        **{"down_block_types": ["DownBlock2D", "AttnDownBlock2D"], "up_block_types": ["AttnUpBlock2D", "UpBlock2D"]},
    }
    options = [
        *("model=ddim_cifar10", "model.shape=[1,28,28]", f"model.weights={tmp_path}/full.ckpt", "inspection.rows=4"),
        *(f"model.network.{key}={str(value).replace(' ', '')}" for key, value in network.items()),
        *("method=released", f"quantizer.steps.released.file={file}", "protocol=quick"),
    ]
    cell = cell_of(*options)
    record = cell.run()
    assert (record["status"], cell.label, record["axes"]["calib"]) == ("complete", "released w4a8", "none")
    assert not {entry.split("-")[0] for entry in executed()} & {"calibration", "weights", "act"}
    assert executed().count(cell.stages["heldout"].entry) == 1
    assert isinstance(qdexp.load(cell.out / record["artifacts"]["checkpoint"]), nn.Module)
    assert {"fid", "noise_error", "distance", "size_stored_mb", "gbops"} <= record["metrics"].keys()
    state = torch.load(file)
    state["model.conv_out.bias"] += 1
    torch.save(state, file)
    changed = cell_of(*options).stages
    assert {role for role, stage in changed.items() if stage.key != cell.stages[role].key} == {
        *("released", "coverage", "curves", "samples", "layers"),
        *(cell.stages.keys() - cell.made.keys()),
    }
    with pytest.raises(UserError, match=r"^quant\.first_last_bits=8: .*; give quant\.first_last_bits=null"):
        cell_of(*options, "quant.first_last_bits=8")
    with pytest.raises(UserError, match=r"^quant\.softmax_bits=32: .*; give 8, for Stable Diffusion 16"):
        cell_of(*options, "quant.softmax_bits=32")
    with pytest.raises(UserError, match=r"^quantizer\.steps\.released\.file=nowhere: no such file"):
        cell_of(*options[:-1], "quantizer.steps.released.file=nowhere")
