"""Options of a scheduler that bound latents, and those that do nothing."""

import inspect
from dataclasses import replace
from typing import Any

import diffusers
import pytest

from qdexp.config import FirstStage, Model, Protocol
from qdexp.errors import UserError
from qdexp.sampling.effects import refuse_bounds, refuse_idle_options, refuse_other_paths
from qdexp.sampling.sampler import Sampler

OURS = "qdexp.sampling.schedulers.DDIM"


def parameters(name: str) -> set[str]:
    return set(inspect.signature(getattr(diffusers, name)).parameters)


KNOWN = [name for name in dir(diffusers) if name.endswith("Scheduler") and "beta_schedule" in parameters(name)]
"""The schedulers of diffusers that take a noise schedule."""

BACKWARDS = {"DDIMInverseScheduler", "DPMSolverMultistepInverseScheduler"}
"""They end in noise."""

DEAF = {"TCDScheduler", "CogVideoXDDIMScheduler"}
"""They take switches that they do not read."""


@pytest.fixture
def latent(tiny_model: Model) -> Model:
    return replace(tiny_model, first_stage=FirstStage("random", {"_target_": "diffusers.AutoencoderKL"}))


def walks(model: Model, protocol: Protocol) -> bool:
    try:
        Sampler(model, protocol).rehearse()
    except UserError:
        return False
    return True


def bounds(model: Model, protocol: Protocol) -> str:
    """What is said of bounds; "" where nothing is."""
    try:
        refuse_bounds(model, protocol)
    except UserError as error:
        assert "\n" not in str(error)
        return str(error)
    return ""


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("kind", ["epsilon", "v_prediction", "sample"])
@pytest.mark.parametrize("name", KNOWN)
def test_whatever_bounds_latents_is_refused_with_the_option_that_frees_them(
    latent: Model, ddim: Protocol, name: str, kind: str
) -> None:
    latent = replace(latent, schedule={**latent.schedule, "prediction_type": kind})
    switches = {"clip_sample", "thresholding"} & parameters(name)
    free = {"_target_": f"diffusers.{name}", **dict.fromkeys(switches, False)}
    if not walks(latent, replace(ddim, scheduler=free)):
        pytest.skip("qdexp cannot walk with it")
    assert bounds(latent, replace(ddim, scheduler=free)) == ""
    for switch in switches if name not in BACKWARDS | DEAF else ():
        told = bounds(latent, replace(ddim, scheduler=free | {switch: True}))
        assert "tiny samples latents" in told and f"protocol.scheduler.{switch}=false" in told


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize(
    ("name", "options", "schedule", "along"),
    [
        ("FlowMatchEulerDiscreteScheduler", {}, {"shift": 3.0}, True),
        ("FlowMatchHeunDiscreteScheduler", {}, {"shift": 3.0}, True),
        ("DPMSolverMultistepScheduler", {"use_flow_sigmas": True, "flow_shift": 3.0}, {}, True),
        ("UniPCMultistepScheduler", {"use_flow_sigmas": True}, {}, True),
        ("DPMSolverMultistepScheduler", {}, {}, False),
        ("DDIMScheduler", {}, {}, False),
        ("DDPMScheduler", {}, {"shift": 3.0}, False),
    ],
)
def test_a_model_of_a_flow_wants_a_sampler_that_walks_along_it(
    latent: Model, ddim: Protocol, name: str, options: dict[str, Any], schedule: dict[str, Any], along: bool
) -> None:
    flow = replace(latent, schedule={"num_train_timesteps": 1000, "prediction_type": "flow_prediction", **schedule})
    protocol = replace(ddim, scheduler={"_target_": f"diffusers.{name}", **options})
    if along:
        refuse_other_paths(flow, protocol)
        assert bounds(flow, protocol) == ""
        return
    with pytest.raises(UserError, match=rf"{name}: tiny predicts the velocity of a flow, .* such as sampler=flow_euler$"):
        refuse_other_paths(flow, protocol)


def test_other_models_may_walk_as_they_like(latent: Model, ddim: Protocol) -> None:
    refuse_other_paths(latent, ddim)


@pytest.mark.parametrize("name", ["DDIMScheduler", "DDPMScheduler"])
def test_defaults_that_clip_are_refused_on_latents_alone(latent: Model, tiny_model: Model, ddim: Protocol, name: str) -> None:
    clipping = replace(ddim, scheduler={"_target_": f"diffusers.{name}"})
    assert "; add +protocol.scheduler.clip_sample=false, or choose another sampler" in bounds(latent, clipping)
    assert bounds(tiny_model, clipping) == ""


def test_both_switches_and_wide_bounds(latent: Model, ddim: Protocol) -> None:
    both = {"_target_": "diffusers.DDIMScheduler", "thresholding": True}
    told = bounds(latent, replace(ddim, scheduler=both))
    assert "add +protocol.scheduler.clip_sample=false protocol.scheduler.thresholding=false, or" in told
    wide = {"_target_": "diffusers.DDIMScheduler", "clip_sample_range": 20.0}
    assert "clip_sample=false" in bounds(latent, replace(ddim, scheduler=wide))


@pytest.mark.parametrize(
    ("target", "options", "idle"),
    [
        ("diffusers.DDIMScheduler", {"clip_sample": False, "clip_sample_range": 2.0}, "clip_sample_range"),
        ("diffusers.DDIMScheduler", {"clip_sample_range": 2.0}, None),
        ("diffusers.DDIMScheduler", {"sample_max_value": 2.0}, "sample_max_value"),
        ("diffusers.DDIMScheduler", {"sample_max_value": 1.0}, None),
        ("diffusers.DPMSolverMultistepScheduler", {"thresholding": True, "sample_max_value": 2.0}, None),
        ("diffusers.DPMSolverMultistepScheduler", {"thresholding": True, "dynamic_thresholding_ratio": 0.5}, "dynamic_thr"),
        ("diffusers.DPMSolverMultistepScheduler", {"solver_order": 1, "solver_type": "heun"}, "solver_type"),
        ("diffusers.DPMSolverMultistepScheduler", {"use_karras_sigmas": True, "solver_type": "heun"}, None),
        ("diffusers.TCDScheduler", {"thresholding": True}, "thresholding"),
        ("diffusers.EulerDiscreteScheduler", {"timestep_spacing": "trailing"}, None),
        (OURS, {"eta": 0.5, "skip": "quadratic", "steps_offset": 1, "set_alpha_to_one": False}, None),
    ],
)
def test_an_option_that_changes_nothing_is_refused(
    tiny_model: Model, ddim: Protocol, target: str, options: dict[str, Any], idle: str | None
) -> None:
    protocol = replace(ddim, scheduler={"_target_": target, **options})
    if idle is None:
        refuse_idle_options([(tiny_model, protocol)])
        return
    with pytest.raises(UserError, match=rf"^protocol\.scheduler\.{idle}.*: does nothing in {target} .*; leave it out$"):
        refuse_idle_options([(tiny_model, protocol)])


def test_an_option_that_some_cells_of_a_sweep_need_is_left_alone(tiny_model: Model, ddim: Protocol) -> None:
    options = {"_target_": "diffusers.DPMSolverMultistepScheduler", "solver_type": "heun"}
    orders = [replace(ddim, scheduler={**options, "solver_order": order}) for order in (1, 2)]
    refuse_idle_options((tiny_model, protocol) for protocol in orders)


def test_an_option_of_the_noise_schedule_is_refused(tiny_model: Model, ddim: Protocol) -> None:
    message = r"^protocol\.scheduler\.beta_end=0\.2: does nothing, .* model\.schedule\.beta_end=0\.02, which wins; leave it out"
    with pytest.raises(UserError, match=message):
        Sampler(tiny_model, replace(ddim, scheduler=ddim.scheduler | {"beta_end": 0.2}))


@pytest.mark.parametrize("options", [{"clip_sample": True}, {"thresholding": True}, {"nonsense": 1}])
def test_our_scheduler_takes_no_option_that_it_does_not_read(
    tiny_model: Model, ddim: Protocol, options: dict[str, Any]
) -> None:
    with pytest.raises(UserError, match=f"{min(options)}: no option of this scheduler"):
        Sampler(tiny_model, replace(ddim, scheduler={"_target_": OURS, **options}))
