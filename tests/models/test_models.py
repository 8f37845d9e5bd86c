import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel
from safetensors.torch import load_file, save_file

from qdexp import models
from qdexp.config import Model
from qdexp.device import to_channels_last
from qdexp.errors import UserError
from qdexp.files import sha256
from qdexp.models import checks


@pytest.fixture
def tiny(tiny_unet: UNet2DModel, tiny_architecture: dict[str, Any], tmp_path: Path) -> Model:
    """The tiny U-Net, its weights in a file of `tmp_path`."""
    path = tmp_path / "model.safetensors"
    save_file(tiny_unet.state_dict(), path)
    return Model("tiny", str(path), [1, 8, 8], tiny_architecture, {})


def sidecar(model: Model, text: str) -> None:
    Path(f"{model.weights}.sha256").write_text(text)


def message(work: Callable[[], object], option: str) -> str:
    """The one line of the UserError that `work` raises."""
    with pytest.raises(UserError) as caught:
        work()
    text = str(caught.value)
    assert text.startswith(option)
    assert "\n" not in text
    return text


def build(model: Model) -> torch.nn.Module:
    return models.build(model, channels_last=False)


def test_the_network_is_the_one_that_was_saved(tiny: Model, tiny_unet: UNet2DModel) -> None:
    network = build(tiny)
    x_t, t = torch.randn(2, 1, 8, 8), torch.tensor([1, 700])
    assert torch.equal(network(x_t, t)[0], tiny_unet(x_t, t)[0])


@pytest.mark.parametrize("channels_last", [False, True])
def test_it_is_in_eval_mode_without_gradients(tiny: Model, channels_last: bool) -> None:
    network = models.build(tiny, channels_last)
    assert not any(module.training for module in network.modules())
    assert not any(parameter.requires_grad for parameter in network.parameters())
    kernels = [value for value in network.parameters() if value.ndim == 4 and value.shape[1] > 1 and value.shape[2] > 1]
    assert all(kernel.is_contiguous(memory_format=torch.channels_last) == channels_last for kernel in kernels)


def test_parameters_are_counted_in_the_file(tiny: Model, tiny_unet: UNet2DModel) -> None:
    assert models.parameters(tiny) == sum(parameter.numel() for parameter in tiny_unet.parameters()) > 40_000


def test_missing_weights(tiny: Model, tmp_path: Path) -> None:
    fix = "give the path of a safetensors file, or rehearse the run with model.weights=random"
    faults = {
        tmp_path / "nowhere.safetensors": "no such file",
        tmp_path / "empty": "no diffusion_pytorch_model.safetensors or .bin in this folder",
    }
    (tmp_path / "empty").mkdir()
    for path, fault in faults.items():
        text = message(partial(build, replace(tiny, weights=str(path))), "model.weights=")
        assert text == f"model.weights={path}: {fault}; {fix}"


@pytest.mark.parametrize("kept", [0, 5, 500, -1])
def test_truncated_weights(tiny: Model, kept: int) -> None:
    path = Path(tiny.weights)
    path.write_bytes(path.read_bytes()[:kept])
    for work in (checks.weights, build):
        assert "not a whole safetensors file" in message(partial(work, tiny), f"model.weights={path}: ")


def test_weights_that_are_no_safetensors(tiny: Model) -> None:
    torch.save({"a": torch.zeros(2)}, tiny.weights)
    assert "not a whole safetensors file" in message(partial(build, tiny), "model.weights=")


def test_a_digest_beside_the_weights_is_checked(tiny: Model) -> None:
    path = Path(tiny.weights)
    for text in (f"{sha256(path)}  {path.name}\n", sha256(path), f"\ufeff{sha256(path).upper()}"):
        sidecar(tiny, text)
        checks.weights(tiny)
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)
    text = message(partial(build, tiny), "model.weights=")
    assert "its digest is not the one in model.safetensors.sha256" in text


@pytest.mark.parametrize("text", ["", "\n", "0" * 64, "not a digest"])
def test_a_digest_that_says_nothing_is_no_proof(tiny: Model, text: str) -> None:
    sidecar(tiny, text)
    assert "its digest is not the one in" in message(partial(checks.weights, tiny), "model.weights=")


def test_weights_that_do_not_fit(tiny: Model, tiny_architecture: dict[str, Any]) -> None:
    wider = replace(tiny, network={**tiny_architecture, "block_out_channels": [8, 32]})
    assert "does not fit model.network" in message(partial(build, wider), "model.weights=")
    tensors = load_file(tiny.weights)
    del tensors["conv_out.bias"]
    save_file(tensors, tiny.weights)
    text = message(partial(build, tiny), "model.weights=")
    assert "does not fit model.network" in text and "conv_out.bias" in text
    save_file(tensors | {"conv_out.bias": torch.zeros(1), "spare": torch.zeros(1)}, tiny.weights)
    assert "spare" in message(partial(build, tiny), "model.weights=")


@pytest.mark.parametrize("target", ["diffusers.NoSuchModel", "no_such_package.Net", "nonsense"])
def test_an_unknown_class(tiny: Model, target: str) -> None:
    assert target in message(partial(build, replace(tiny, network={"_target_": target})), "model.network: ")


def test_arguments_that_the_class_does_not_take(tiny: Model, tiny_architecture: dict[str, Any]) -> None:
    wrong = replace(tiny, network={**tiny_architecture, "colour": "red"})
    message(partial(build, wrong), "model.network: ")
    message(partial(build, replace(tiny, network={**tiny_architecture, "norm_num_groups": 3})), "model.network: ")


@pytest.mark.parametrize("suffix", [".safetensors", ".pt"])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_no_numbers(tiny: Model, tmp_path: Path, suffix: str, value: float) -> None:
    checks.finite(tiny)
    held = load_file(tiny.weights)
    held["conv_in.weight"][0, 0, 0, 0] = value
    path = tmp_path / f"wrong{suffix}"
    torch.save(held, path) if suffix == ".pt" else save_file(held, path)
    told = message(lambda: checks.finite(replace(tiny, weights=str(path))), f"model.weights={path}: conv_in.weight has numbers")
    assert told.endswith("are not finite; fetch or export it again")


def test_a_mask_may_be_infinite(tmp_path: Path) -> None:
    network = {"_target_": f"{__name__}.Masked"}
    save_file(Masked().state_dict(), tmp_path / "masked.safetensors")
    checks.finite(Model("masked", str(tmp_path / "masked.safetensors"), [1, 8, 8], network, {}))


class Masked(torch.nn.Linear):
    def __init__(self) -> None:
        super().__init__(2, 2)
        self.register_buffer("mask", torch.full((2, 2), -math.inf))


def test_channels_last_lays_out_what_has_them_alone() -> None:
    images, volumes = torch.nn.Conv2d(2, 2, 3), torch.nn.Conv3d(2, 2, 3)
    to_channels_last(torch.nn.Sequential(images, volumes, torch.nn.Linear(2, 2)))
    assert images.weight.is_contiguous(memory_format=torch.channels_last)
    assert volumes.weight.is_contiguous()
