from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn

from qdexp.config import Model, Protocol
from qdexp.errors import UserError
from qdexp.sampling.noise import draw, generators
from qdexp.sampling.sampler import Sampler
from qdexp.sampling.schedulers import DDIM

CPU = torch.device("cpu")
OURS: dict[str, Any] = {"_target_": "qdexp.sampling.schedulers.DDIM"}
THEIRS: dict[str, Any] = {"_target_": "diffusers.DDIMScheduler", "clip_sample": False}


@torch.inference_mode()
def run(model: Model, protocol: Protocol, network: nn.Module) -> Tensor:
    return Sampler(model, protocol).run(network, generators("evaluation", 0, [3, 4]), CPU)


@pytest.mark.parametrize(
    "options",
    [{}, {"steps_offset": 1}, {"steps_offset": 1, "set_alpha_to_one": False}, {"prediction_type": "v_prediction"}],
)
def test_uniform_ddim_is_that_of_diffusers(
    tiny_model: Model, ddim: Protocol, tiny_unet: UNet2DModel, options: dict[str, Any]
) -> None:
    ours, theirs = (run(tiny_model, replace(ddim, scheduler=one | options), tiny_unet) for one in (OURS, THEIRS))
    torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-5)


def test_eta_one_is_ddpm_with_each_sample_s_own_noise(tiny_model: Model, ddim: Protocol, tiny_unet: UNet2DModel) -> None:
    ddpm = {"_target_": "diffusers.DDPMScheduler", "clip_sample": False}
    ours, theirs = (run(tiny_model, replace(ddim, scheduler=one), tiny_unet) for one in (OURS | {"eta": 1.0}, ddpm))
    torch.testing.assert_close(ours, theirs, rtol=1e-4, atol=1e-4)
    assert not torch.allclose(ours, run(tiny_model, replace(ddim, scheduler=OURS), tiny_unet), atol=1e-2)


def test_quadratic_skip_is_the_authors(tiny_model: Model) -> None:
    scheduler = DDIM(skip="quadratic", **tiny_model.schedule)
    scheduler.set_timesteps(20)
    times = [int(s) for s in np.linspace(0, np.sqrt(1000 * 0.8), 20) ** 2]
    assert scheduler.timesteps.tolist() == times[::-1]
    gaps = np.diff(times)
    assert (np.diff(gaps) >= 0).all()


@torch.inference_mode()
def test_a_quadratic_walk_is_equation_12(tiny_model: Model, ddim: Protocol, tiny_unet: UNet2DModel) -> None:
    protocol = replace(ddim, scheduler=OURS | {"skip": "quadratic"}, steps=6)
    betas = np.linspace(tiny_model.schedule["beta_start"], tiny_model.schedule["beta_end"], 1000)
    bar = np.cumprod(1 - betas)
    times = [int(s) for s in np.linspace(0, np.sqrt(800), 6) ** 2][::-1]
    x = draw(generators("evaluation", 0, [3, 4]), (1, 8, 8)).double()
    for t, ahead in zip(times, [*times[1:], None], strict=True):
        eps = tiny_unet(x.float(), torch.tensor([t, t]))[0].double()
        x_0 = (x - np.sqrt(1 - bar[t]) * eps) / np.sqrt(bar[t])
        after = 1.0 if ahead is None else bar[ahead]
        x = np.sqrt(after) * x_0 + np.sqrt(1 - after) * eps
    torch.testing.assert_close(run(tiny_model, protocol, tiny_unet).double(), x, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    ("scheduler", "calls", "whole"),
    [
        ({"_target_": "diffusers.PNDMScheduler", "skip_prk_steps": True}, 6, True),
        ({"_target_": "diffusers.PNDMScheduler"}, 14, True),
        ({"_target_": "diffusers.HeunDiscreteScheduler"}, 9, False),
        ({"_target_": "diffusers.EulerDiscreteScheduler"}, 5, False),
        ({"_target_": "diffusers.DPMSolverMultistepScheduler"}, 5, True),
    ],
)
def test_every_call_of_the_network_has_its_timestep(
    tiny_model: Model, ddim: Protocol, tiny_unet: UNet2DModel, scheduler: dict[str, Any], calls: int, whole: bool
) -> None:
    sampler, seen = Sampler(tiny_model, replace(ddim, scheduler=scheduler)), list[int]()
    sampler.rehearse()
    with torch.inference_mode():
        x_0 = sampler.run(tiny_unet, generators("evaluation", 0, [0]), CPU, observe=lambda at, *_: seen.append(at))
    assert seen == list(range(calls)) == list(range(sampler.steps))
    assert torch.tensor(sampler.timesteps).is_floating_point() is not whole
    assert x_0.isfinite().all()


@pytest.mark.parametrize(
    ("scheduler", "steps", "message"),
    [
        (OURS, 400, r"protocol\.steps=400: uniform skip takes every 2\. of 1000 timesteps, 500 in all; choose 500"),
        (OURS | {"steps_offset": 1}, 1000, r"protocol\.steps=1000: .*up to 1000"),
        (OURS | {"skip": "cubic"}, 5, r"protocol\.scheduler=qdexp.*skip=cubic: choose uniform or quadratic"),
        (OURS | {"eta": 2}, 5, r"protocol\.scheduler=qdexp.*eta=2: choose 0 to 1"),
    ],
)
def test_impossible_walks_are_refused(
    tiny_model: Model, ddim: Protocol, scheduler: dict[str, Any], steps: int, message: str
) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        Sampler(tiny_model, replace(ddim, scheduler=scheduler, steps=steps))


class Wayward(DDIM):
    """A scheduler that wants what no sampler gives."""

    def step(self, *_: Any, return_dict: bool = False) -> Any:
        raise TypeError("a second network is missing")


def test_a_scheduler_that_cannot_be_walked_with_is_refused(tiny_model: Model, ddim: Protocol) -> None:
    sampler = Sampler(tiny_model, replace(ddim, scheduler={"_target_": f"{__name__}.Wayward"}))
    with pytest.raises(
        UserError, match=r"^protocol\.scheduler=.*Wayward: its trajectory ends with TypeError: a second network"
    ):
        sampler.rehearse()
