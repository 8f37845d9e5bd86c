"""The importer of original checkpoints: every key, every shape, and the same numbers as the original's arithmetic."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch
from hydra.utils import instantiate
from originals import OriginalUNet, restless
from pixel_originals import OriginalFirstStage, OriginalPixelUNet
from smaller import PIXEL, SMALL, changes, config, save_original, state_dict
from torch import Tensor, nn

from qdexp import models
from qdexp.config import Model
from qdexp.errors import UserError
from qdexp.models import checks, loading

LSUN = {"channels": 3, "base": 224, "mult": (1, 2, 3, 4), "attends": (2, 4, 8), "head_width": 32}
VQ = {"base": 128, "mult": (1, 2, 4), "latents": 3, "codes": 8192}
FULL: dict[str, tuple[dict[str, Any], dict[str, Any], bool]] = {
    "ldm_bedroom": (LSUN, VQ, False),
    "ldm_celebahq": (LSUN, VQ, False),
    "ldm_ffhq": (LSUN, VQ, False),
    "ldm_church": (
        {"channels": 4, "base": 192, "mult": (1, 2, 2, 4, 4), "attends": (1, 2, 4, 8), "heads": 8, "film": True},
        {"base": 128, "mult": (1, 2, 4, 4), "latents": 4, "codes": None},
        False,
    ),
    "ldm_imagenet": ({"channels": 3, "base": 192, "mult": (1, 2, 3, 5), "attends": (2, 4, 8), "context": 512}, VQ, True),
}
"""The published configs of the U-Net and of the first stage, and whether there are classes."""

STEPS = torch.tensor([1, 500, 999])


@cache
def at_full_width(name: str) -> tuple[Model, OriginalUNet, OriginalFirstStage, Tensor | None, nn.Module, nn.Module]:
    """Of the original the networks and the table of classes, and our own networks: shapes alone, which take seconds to make."""
    unet_config, stage_config, has_classes = FULL[name]
    model = config(name)
    assert model.first_stage is not None
    with torch.device("meta"):
        unet, stage = OriginalUNet(**unet_config), OriginalFirstStage(**stage_config)
        classes = torch.empty(1001, 512) if has_classes else None
        return model, unet, stage, classes, instantiate(model.network), instantiate(model.first_stage.network)


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("name", FULL)
def test_at_full_width_every_key_is_used_once(name: str, average: bool) -> None:
    model, unet, stage, classes, *ours = at_full_width(name)
    state = state_dict(unet, stage, model.schedule, average=average, classes=classes, scale=None)
    used: Counter[str] = Counter()
    for network in ours:
        origins, wanted = loading.origins(network, state)
        shapes = {target: tuple(value.shape) for target, value in network.state_dict().items()}
        assert origins.keys() == shapes.keys()
        assert wanted == {origin.key for origin in origins.values()}
        for target, origin in origins.items():
            assert origin.fits(tuple(state[origin.key].shape), shapes[target]), target
        used.update(origin.key for origin in origins.values())
    prefix = "model_ema.diffusion_model" if average else "model.diffusion_model."
    networks = {key for key in state if key.startswith((prefix, "first_stage_model.", "cond_stage_model."))}
    assert used.keys() == networks
    assert {key for key, times in used.items() if times != 1} == {key for key in networks if "qkv" in key}
    assert {times for key, times in used.items() if "qkv" in key} <= {3}


def test_the_pixel_unet_at_full_width_uses_every_key_once() -> None:
    with torch.device("meta"):
        truth, own = OriginalPixelUNet(3, 128, (1, 2, 2, 2), (1,)), instantiate(config("ddim_cifar10").network)
    state = truth.state_dict()
    origins, wanted = loading.origins(own, state)
    assert sorted(origin.key for origin in origins.values()) == sorted(wanted) == sorted(state)
    shapes = own.state_dict()
    assert all(origin.fits(tuple(state[origin.key].shape), tuple(shapes[name].shape)) for name, origin in origins.items())


@torch.inference_mode()
def test_the_pixel_unet_computes_what_the_original_computes(tmp_path: Path) -> None:
    unet_config, changes = PIXEL
    truth, model = restless(OriginalPixelUNet(**unet_config)), config("ddim_cifar10")
    torch.save(truth.state_dict(), tmp_path / "ddim.ckpt")
    model = replace(model, weights=str(tmp_path / "ddim.ckpt"), network={**model.network, **changes})
    x = torch.randn(3, 3, 16, 16)
    own, wanted = models.build(model, channels_last=False)(x, STEPS)[0], truth(x, STEPS)
    assert wanted.std() > 0.1
    torch.testing.assert_close(own, wanted, rtol=1e-5, atol=1e-5 * wanted.abs().max().item())


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, OriginalUNet, OriginalFirstStage, Tensor]:
    """A small model, the original's networks, and the contexts of its classes; their checkpoint lies at the model's path."""
    path = tmp_path / "model.ckpt"
    unet, stage, classes = save_original(request.param, path)
    model, (unet_changes, stage_changes) = config(request.param), changes(request.param)
    assert model.first_stage is not None
    model = replace(
        model,
        weights=str(path),
        network={**model.network, **unet_changes},
        first_stage=replace(
            model.first_stage, weights=str(path), network={**model.first_stage.network, **stage_changes}, scale=None
        ),
    )
    return model, unet, stage, classes


@torch.inference_mode()
@pytest.mark.parametrize("channels_last", [False, True])
def test_the_network_computes_what_the_original_computes(small: Any, channels_last: bool) -> None:
    model, unet, _, classes = small
    network = models.build(model, channels_last)
    x = torch.randn(3, unet.out[2].out_channels, 16, 16)
    if "num_classes" in model.network:
        labels = torch.tensor([0, 10, 4])
        own, truth = network(x, STEPS, class_labels=labels)[0], unet(x, STEPS, classes[labels][:, None])
    else:
        own, truth = network(x, STEPS)[0], unet(x, STEPS)
    assert truth.std() > 0.1
    torch.testing.assert_close(own, truth, rtol=1e-5, atol=1e-5 * truth.abs().max().item())


@torch.inference_mode()
def test_the_first_stage_decodes_and_encodes_as_the_original(small: Any) -> None:
    model, _, stage, _ = small
    decoder = models.first_stage(model)
    assert decoder is not None
    z = torch.randn(2, stage.post_quant_conv.in_channels, 8, 8)
    truth = stage.decode(z)
    own = decoder.decode(0.4 * z)  # the scale that the checkpoint holds
    torch.testing.assert_close(own, truth, rtol=1e-5, atol=1e-5 * truth.abs().max().item())
    images = torch.randn(2, 3, 16, 16)
    hidden = decoder.autoencoder.quant_conv(decoder.autoencoder.encoder(images))
    truth = stage.encode(images)
    torch.testing.assert_close(hidden, truth, rtol=1e-5, atol=1e-5 * truth.abs().max().item())


@pytest.fixture
def rewritten(small: Any) -> Callable[[Callable[[dict[str, Tensor]], Any]], str]:
    """``rewritten(change)``: what is said of the checkpoint once ``change`` has worked on its state dict in place."""

    def message(change: Callable[[dict[str, Tensor]], Any]) -> str:
        model = small[0]
        state = torch.load(model.weights, weights_only=True)["state_dict"]
        change(state)
        torch.save({"state_dict": state}, model.weights)
        with pytest.raises(UserError) as caught:
            checks.weights(model)
            checks.fit(model)
            checks.first_stage(model)
        assert str(caught.value).startswith(("model.weights=", "model.first_stage.weights=")) and "\n" not in str(caught.value)
        return str(caught.value)

    return message


CHANGES: dict[str, Callable[[dict[str, Tensor]], Any]] = {
    "first_stage_model.decoder.norm_out.weight is missing": lambda s: s.pop("first_stage_model.decoder.norm_out.weight"),
    "model_ema.diffusion_modelout2bias is missing": lambda s: s.pop("model_ema.diffusion_modelout2bias"),
    "model_ema.diffusion_modelout2bias is (7,)": lambda s: s.update({"model_ema.diffusion_modelout2bias": torch.zeros(7)}),
    "model_ema.diffusion_modelnews is (2,)": lambda s: s.update({"model_ema.diffusion_modelnews": torch.zeros(2)}),
    "unknown is (2,)": lambda s: s.update(unknown=torch.zeros(2)),
    "its noise schedule (1000 steps, beta 0.5 to": lambda s: s["betas"].mul_(0).add_(0.5),
}


@pytest.mark.parametrize("told", CHANGES)
def test_what_does_not_fit_is_named(rewritten: Any, told: str) -> None:
    assert told in rewritten(CHANGES[told])


def test_a_scale_that_neither_the_config_nor_the_file_has(small: Any, rewritten: Any) -> None:
    told = rewritten(lambda state: state.pop("scale_factor"))
    assert told.endswith("it holds no scale_factor; give model.first_stage.scale, the factor of its latents")


def test_a_scale_that_is_not_the_checkpoints(small: Any) -> None:
    model = small[0]
    checks.first_stage(replace(model, first_stage=replace(model.first_stage, scale=0.40001)))
    with pytest.raises(UserError, match=r"it holds scale_factor=0\.4, model\.first_stage\.scale is 1\.0; give null there"):
        checks.first_stage(replace(model, first_stage=replace(model.first_stage, scale=1.0)))
