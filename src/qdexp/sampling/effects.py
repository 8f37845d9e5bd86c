"""Effects of a scheduler's options, found by sampling with it, since names cannot be trusted.

Two things make a number another one than its protocol says. On latents, clipping or thresholding of the x_0 estimate is wrong,
and several schedulers do it by default. And an option may do nothing: some schedulers swallow what they do not know, others
read one option only beside another.
"""

import inspect
import json
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import torch
from diffusers import DDPMScheduler
from hydra.utils import get_object
from torch import Tensor

from qdexp.calling import FLOW
from qdexp.config import Model, Protocol
from qdexp.errors import UserError
from qdexp.sampling.noise import generators
from qdexp.sampling.sampler import Sampler

FAR = 1e3
"""An x_0 so large that whatever bounds it shows."""

SWITCHES = ("clip_sample", "thresholding")
"""The options that bound x_0 in diffusers' schedulers, as far as names tell."""


def refuse_bounds(model: Model, protocol: Protocol) -> None:
    """Raises UserError where trajectories of a latent model end within bounds, whatever its network predicts: latents have
    none."""
    if model.first_stage is None or _goes_far(model, protocol):
        return
    given, fix = protocol.scheduler, "choose another sampler"
    for names in (*((name,) for name in SWITCHES), SWITCHES):
        if _goes_far(model, replace(protocol, scheduler=given | dict.fromkeys(names, False))):
            off = [f"{'' if name in given else '+'}protocol.scheduler.{name}=false" for name in names]
            fix = f"add {' '.join(off)}, or {fix}"
            break
    raise UserError(f"protocol.scheduler={given['_target_']}: bounds x_0, and {model.name} samples latents, which have no "
                    f"bounds; {fix}")  # fmt: skip


def refuse_other_paths(model: Model, protocol: Protocol) -> None:
    """Raises UserError where the model predicts the velocity of a flow, and the sampler does not follow it: a network whose x_0
    is 1 everywhere has to lead there."""
    if model.schedule.get("prediction_type") != FLOW:
        return
    try:
        x_0 = Sampler(model, protocol).walk(_constant(model, 1.0), *_start(), (4, 2, 2))
    except Exception:  # it may be the user's own
        x_0 = torch.zeros(1)
    if not torch.allclose(x_0, torch.ones_like(x_0), atol=1e-2):
        raise UserError(f"protocol.scheduler={protocol.scheduler['_target_']}: {model.name} predicts the velocity of a flow, "
                        f"whose path it does not follow; choose a sampler of flows, such as sampler=flow_euler")  # fmt: skip


def refuse_idle_options(samplers: Iterable[tuple[Model, Protocol]]) -> None:
    """UserError where an option of ``protocol.scheduler`` does nothing in all of a command's ``samplers`` that set it."""
    setters: dict[str, dict[str, tuple[Model, Protocol]]] = {}
    for model, protocol in samplers:
        for name in protocol.scheduler.keys() - {"_target_"}:
            walk = json.dumps([model.schedule, protocol.scheduler, protocol.steps], sort_keys=True)
            setters.setdefault(name, {})[walk] = model, protocol
    for name, walks in sorted(setters.items()):
        if not any(_does_something(model, protocol, name) for model, protocol in walks.values()):
            scheduler = next(iter(walks.values()))[1].scheduler
            raise UserError(f"protocol.scheduler.{name}={scheduler[name]}: does nothing in {scheduler['_target_']} with the "
                            f"other options and steps as they are; leave it out")  # fmt: skip


def _does_something(model: Model, protocol: Protocol, name: str) -> bool:
    """Whether the option says its default, or trajectories with it differ from those without."""
    without = replace(protocol, scheduler={key: value for key, value in protocol.scheduler.items() if key != name})
    if protocol.scheduler[name] == _default(protocol.scheduler["_target_"], name):
        return True
    try:
        return not torch.equal(_wandering(model, protocol), _wandering(model, without))
    except UserError:
        return True  # it cannot be left out


def _default(target: str, name: str) -> Any:
    option = inspect.signature(get_object(target)).parameters.get(name)
    return inspect.Parameter.empty if option is None else option.default


def _goes_far(model: Model, protocol: Protocol) -> bool:
    """Whether a network whose x_0 is ``FAR`` everywhere leads there, or, where the trajectory leads elsewhere, beyond any
    bounds."""
    try:
        sampler = Sampler(model, protocol)
    except UserError:  # it has no such option
        return False
    x_0 = sampler.walk(_constant(model, FAR), *_start(), (4, 2, 2))
    return not bool(x_0.abs().max() <= FAR / 2)


def _constant(model: Model, x_0: float) -> Callable[[Tensor, Tensor], Tensor]:
    """The prediction of a network whose estimate of x_0 is the same everywhere: x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps, or,
    on a flow, (1 - s) x_0 + s eps."""
    if model.schedule.get("prediction_type") == FLOW:
        last = model.schedule.get("num_train_timesteps", 1000)
        return lambda x_t, t: (x_t - x_0) * (last / t.clamp_min(1e-3)).view(-1, 1, 1, 1).to(x_t.dtype)
    known = inspect.signature(DDPMScheduler).parameters
    schedule = DDPMScheduler(**{name: value for name, value in model.schedule.items() if name in known})
    abar = schedule.alphas_cumprod.double()
    odds, kind = torch.log(abar) - torch.log1p(-abar), schedule.config.prediction_type

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        time = t.double().clamp(0, len(odds) - 1)  # some schedulers call at fractions
        low, share = time.floor().long(), time.frac()
        here = torch.sigmoid(odds[low].lerp(odds[time.ceil().long()], share)).view(-1, 1, 1, 1).to(x_t.dtype)
        signal, noise = here.sqrt(), (1 - here).sqrt()
        eps = (x_t - signal * x_0) / noise
        return {"v_prediction": signal * eps - noise * x_0, "sample": torch.full_like(x_t, x_0)}.get(kind, eps)

    return estimate


def _wandering(model: Model, protocol: Protocol) -> Tensor:
    """The end of a trajectory with a network whose predictions depend on everything, and are large."""
    sampler = Sampler(model, protocol)

    def estimate(x_t: Tensor, t: Tensor) -> Tensor:
        return 3 * torch.sin(2 * x_t + t.view(-1, 1, 1, 1) / 7)

    return sampler.walk(estimate, *_start(), (4, 4, 4))


def _start() -> tuple[list[torch.Generator], torch.device]:
    return generators("evaluation", 0, [0]), torch.device("cpu")
