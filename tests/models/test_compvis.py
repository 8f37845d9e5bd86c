"""The importer of original checkpoints: every key, every shape, and the same numbers as the original's arithmetic."""

from collections import Counter
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDPMScheduler
from hydra.utils import instantiate
from omegaconf import OmegaConf
from originals import OriginalFirstStage, OriginalUNet
from torch import Tensor, nn

from qdexp import models
from qdexp.config import FirstStage, Model
from qdexp.errors import UserError
from qdexp.models import loading
from qdexp.paths import conf_folder

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

SMALL: dict[str, tuple[dict[str, Any], dict[str, Any], dict[str, Any], dict[str, Any]]] = {
    "ldm_bedroom": (
        {"channels": 3, "base": 32, "mult": (1, 2), "attends": (2,), "head_width": 16, "layers": 1},
        {"base": 32, "mult": (1, 2), "latents": 3, "codes": 50, "layers": 1},
        {
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
            "num_classes": 11,
            "cross_attention_dim": 12,
            "block_out_channels": [32, 64],
            "down_block_types": ["DownBlock2D", "CrossAttnDownBlock2D"],
            "up_block_types": ["CrossAttnUpBlock2D", "UpBlock2D"],
        },
        {"block_out_channels": [32, 64], "num_vq_embeddings": 50},
    ),
}
"""Small widths: the original's networks, and what of our config that changes."""

STEPS = torch.tensor([1, 500, 999])


def config(name: str) -> Model:
    """A model as its own file gives it."""
    folder = conf_folder() / "model"
    given: Any = OmegaConf.load(folder / f"{name}.yaml")
    for base in given.pop("defaults", [])[:-1]:
        given = OmegaConf.merge(OmegaConf.load(folder / f"{base}.yaml"), given)
    plain: Any = OmegaConf.to_container(OmegaConf.create({"model": given}), resolve=True)
    values = {str(key): value for key, value in plain["model"].items()}
    return Model(**{**values, "first_stage": FirstStage(**values["first_stage"])})


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


@pytest.mark.parametrize("average", [True, False])
@pytest.mark.parametrize("name", FULL)
def test_at_full_width_every_key_is_used_once(name: str, average: bool) -> None:
    unet_config, stage_config, has_classes = FULL[name]
    model = config(name)
    assert model.first_stage is not None
    with torch.device("meta"):
        unet, stage = OriginalUNet(**unet_config), OriginalFirstStage(**stage_config)
        classes = torch.empty(1001, 512) if has_classes else None
        own, own_stage = instantiate(model.network), instantiate(model.first_stage.network)
    state = state_dict(unet, stage, model.schedule, average=average, classes=classes, scale=None)
    used: Counter[str] = Counter()
    for network in (own, own_stage):
        origins, wanted = loading.origins(network, state)
        assert origins.keys() == network.state_dict().keys()
        assert wanted == {origin.key for origin in origins.values()}
        for target, origin in origins.items():
            assert origin.fits(tuple(state[origin.key].shape), tuple(network.state_dict()[target].shape)), target
        used.update(origin.key for origin in origins.values())
    prefix = "model_ema.diffusion_model" if average else "model.diffusion_model."
    networks = {key for key in state if key.startswith((prefix, "first_stage_model.", "cond_stage_model."))}
    assert used.keys() == networks
    assert {key for key, times in used.items() if times != 1} == {key for key in networks if "qkv" in key}
    assert {times for key, times in used.items() if "qkv" in key} <= {3}


@pytest.fixture(params=SMALL)
def small(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Model, OriginalUNet, OriginalFirstStage, Tensor]:
    """A small model, the original's networks, and the contexts of its classes; their checkpoint lies at the model's path."""
    unet_config, stage_config, unet_changes, stage_changes = SMALL[request.param]
    unet, stage = OriginalUNet(**unet_config), OriginalFirstStage(**stage_config)
    for network in (unet, stage):
        for value in network.parameters():  # norms and biases must matter
            nn.init.normal_(value, mean=0.5 if value.ndim == 1 else 0, std=0.5 if value.ndim == 1 else value[0].numel() ** -0.5)
    if stage_config["codes"]:
        nn.init.normal_(stage.quantize.embedding.weight)
    path = tmp_path / "model.ckpt"
    model = config(request.param)
    assert model.first_stage is not None
    blocks = {f"{side}_block_types": [f"{kind}2D"] * len(stage_config["mult"])
              for side, kind in (("down", "DownEncoderBlock"), ("up", "UpDecoderBlock"))}  # fmt: skip
    autoencoder = {**model.first_stage.network, "layers_per_block": 1, **blocks, **stage_changes}
    model = replace(
        model,
        weights=str(path),
        network={**model.network, "layers_per_block": 1, **unet_changes},
        first_stage=replace(model.first_stage, weights=str(path), network=autoencoder),
    )
    classes = torch.randn(11, 12)
    with_classes = classes if "num_classes" in model.network else None
    state = state_dict(unet, stage, model.schedule, average=True, classes=with_classes, scale=0.4)
    torch.save({"epoch": 3, "state_dict": state}, path)
    return model, unet.eval(), stage.eval(), classes


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
    own = decoder.decode(0.4 * z)  # the scale that the checkpoint holds, not the one of the config
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
            models.check_weights(model)
            models.check_fit(model)
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
