"""A loaded network, saved in diffusers' own ways for its class in full precision."""

import json
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from families import FAMILIES, Family
from quant_helpers import output, quantized
from safetensors.torch import load_file
from torch import nn

import qdexp
from qdexp.cell import Cell
from qdexp.models import checkpoint
from qdexp.quant.network import quantized_layers, set_activation_mode
from qdexp.quant.packed import weights

SAID = "dequantized weights in floating point, .* copy the folder"


def saved_pretrained(network: Any, folder: Path) -> Any:
    """What the class makes of what is saved, every tensor in place."""
    with pytest.warns(UserWarning, match=SAID) as said:
        network.save_pretrained(folder)
    assert len(said) == 1 and "\n" not in str(said[0].message)
    original, told = type(network).from_pretrained(folder, output_loading_info=True, torch_dtype=network.dtype)
    assert not any(told.values()), told
    assert not list(quantized_layers(original))
    assert all(torch.equal(value, original.get_parameter(name)) for name, value in weights(network).items())
    return original


@pytest.mark.parametrize("family", FAMILIES, ids=lambda family: family.name)
def test_the_class_in_full_precision_takes_it(family: Family, tmp_path: Path) -> None:
    network = family.quantized(4, 8, split=family.splits)
    checkpoint.save(tmp_path / "checkpoint", network, family.architecture)
    loaded = qdexp.load(tmp_path / "checkpoint")
    original = saved_pretrained(loaded, tmp_path / "saved")
    x_t, t, condition = family.batch(network)
    set_activation_mode(loaded, "off")
    with torch.inference_mode():
        torch.testing.assert_close(original(x_t, t, **condition)[0], loaded(x_t, t, **condition)[0])


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_in_half_precision_and_with_channels_last(
    tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path, memory_format: torch.memory_format
) -> None:
    tiny_unet.to(memory_format=memory_format)
    checkpoint.save(tmp_path / "checkpoint", quantized(tiny_unet, 3, 8), tiny_architecture)
    original = saved_pretrained(qdexp.load(tmp_path / "checkpoint").to(torch.bfloat16), tmp_path / "saved")
    assert original.dtype == torch.bfloat16


def test_a_pipeline_is_saved_and_cast(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path) -> None:
    checkpoint.save(tmp_path / "checkpoint", quantized(tiny_unet, 4, 8), tiny_architecture)
    pipeline = DDIMPipeline(qdexp.load(tmp_path / "checkpoint"), DDIMScheduler())
    with pytest.warns(UserWarning, match=SAID):
        pipeline.save_pretrained(tmp_path / "pipeline")
    again = DDIMPipeline.from_pretrained(tmp_path / "pipeline")
    set_activation_mode(pipeline.unet, "off")
    torch.testing.assert_close(output(again.unet), output(pipeline.unet))
    set_activation_mode(pipeline.unet, "on")
    expected = output(pipeline.unet)
    network = pipeline.to(torch.float16).unet
    assert {value.dtype for value in (*network.parameters(), *weights(network).values())} == {torch.float16}
    pipeline.set_progress_bar_config(disable=True)
    images = pipeline(2, torch.Generator().manual_seed(0), num_inference_steps=2, output_type="np").images
    assert images.std() > 0
    network.register_forward_pre_hook(lambda _, args: (args[0].half(), args[1]))
    assert (output(network).float() - expected).norm() < 0.05 * expected.norm()


@pytest.mark.parametrize("options", [
    ("method=qdiffusion", "calib.rows=3", "calib.timesteps=2"), ("quantizer=gptq", "quant.act.time=dynamic"),
], ids=["learned", "gptq"])  # fmt: skip
def test_what_methods_make(finished: Callable[..., Cell], tmp_path: Path, options: tuple[str, ...]) -> None:
    saved_pretrained(qdexp.load(finished(*options).record), tmp_path / "saved")


def test_packed_checkpoints_hold_no_dequantized_weight(tiny_unet: UNet2DModel, tiny_architecture: Any, tmp_path: Path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        checkpoint.save(tmp_path / "one", quantized(tiny_unet, 4, 8), tiny_architecture)
        checkpoint.save(tmp_path / "two", checkpoint.load(tmp_path / "one"), tiny_architecture)
    names = load_file(tmp_path / "one" / "checkpoint.safetensors").keys()
    assert not names & weights(tiny_unet).keys() and len(weights(tiny_unet)) > 20
    for file in ("checkpoint.json", "checkpoint.safetensors"):
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_a_state_is_loaded_into_a_network_of_ones_own(tmp_path: Path) -> None:
    """Not of diffusers: by plain torch."""
    target = f"{__name__}.Own"
    checkpoint.save(tmp_path, quantized(Own(), 4, 8), {"_target_": target})
    loaded, original = qdexp.load(tmp_path, trust=[target]), Own()
    with pytest.warns(UserWarning, match=SAID):
        original.load_state_dict(loaded.state_dict())
    set_activation_mode(loaded, "off")
    assert torch.equal(output(original), output(loaded))
    assert json.loads((tmp_path / "checkpoint.json").read_text())["architecture"] == {"_target_": target}


class Own(nn.Module):
    """One layer under two names."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(1, 1, 3, padding=1, bias=False)
        self.again = self.first

    def forward(self, x: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor]:
        return (self.again(self.first(x)),)
