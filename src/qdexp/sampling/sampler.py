"""The reverse process: x_T -> x_0 with any diffusers scheduler.

At each of the scheduler's timesteps t the network estimates the noise eps(x_t, t), and the scheduler makes x_{t-1} from both.
What it estimates instead is up to the model (``model.schedule.prediction_type``): v, x_0, or the velocity of a flow.
Schedulers may call the network more than once a step, and at timesteps between the whole ones: a *call* is what counts here.
"""

import inspect
import json
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

import torch
from hydra.errors import InstantiationException
from hydra.utils import get_object, instantiate
from torch import Tensor

from qdexp.calling import FLOW
from qdexp.config import Model, SamplerOptions, Target
from qdexp.errors import UserError
from qdexp.sampling.conditions import Asked
from qdexp.sampling.noise import draw, generators

NOTHING = Asked()
"""The condition of an unconditional network."""

Observer = Callable[[int, Tensor, Tensor], None]
"""Called at each call of the network with its position, x_t as the network sees it and eps, both [n, c, h, w]."""


class Sampler:
    """Holds what the protocol fixes: the scheduler, and the ``timesteps`` of its ``steps`` calls of the network.

    Raises UserError where the scheduler cannot be made with its options and steps, or an option is one of the noise schedule.
    """

    def __init__(self, model: Model, options: SamplerOptions) -> None:
        trained = model.schedule.get("num_train_timesteps")
        if trained is not None and options.steps > trained:
            raise UserError(f"protocol.steps={options.steps}: {model.name} has {trained} timesteps; choose at most as many")
        for option in sorted(options.scheduler.keys() & model.schedule.keys()):
            raise UserError(f"protocol.scheduler.{option}={options.scheduler[option]}: does nothing, the network was trained "
                            f"with model.schedule.{option}={model.schedule[option]}, which wins; leave it out")  # fmt: skip
        self.shape = tuple(model.shape)
        self._wanted = options.steps
        self._name = options.scheduler["_target_"]
        self._scheduler = lambda: instantiate(options.scheduler, **_taken(options.scheduler, model.schedule))
        exact = [float(t) for t in self._ready().timesteps]
        whole = [int(t) for t in exact]
        self.timesteps: list[int] | list[float] = whole if whole == exact else exact
        self.steps = len(exact)

    def _ready(self) -> Any:
        """A scheduler of its own for each batch: multistep solvers remember their last outputs.

        It stays on the CPU, where its branches on the timestep wait for no device.
        """
        try:
            scheduler = self._scheduler()
        except InstantiationException as error:
            raise UserError(f"protocol.scheduler={self._name}: {' '.join(str(error).split())}; change its options") from error
        try:
            scheduler.set_timesteps(self._wanted)
        except ValueError as error:
            raise UserError(f"protocol.steps={self._wanted}: {error}") from error
        return scheduler

    def rehearse(self) -> None:
        """Samples once with a network that predicts zeros. Raises UserError where the scheduler cannot be used."""
        try:
            self.walk(lambda x_t, _: torch.zeros_like(x_t), generators("evaluation", 0, [0]), torch.device("cpu"), (1, 2, 2))
        except Exception as error:  # it may be the user's own
            raise UserError(f"protocol.scheduler={self._name}: its trajectory ends with {type(error).__name__}: "
                            f"{' '.join(str(error).split())}; choose another sampler") from error  # fmt: skip

    def run(
        self,
        network: torch.nn.Module,
        sources: list[torch.Generator],
        device: torch.device,
        asked: Asked = NOTHING,
        observe: Observer | None = None,
    ) -> Tensor:
        """x_0 [n, c, h, w] in about [-1, 1], on ``device``; one generator a sample gives all its noise."""
        return self.walk(partial(asked.estimate, network), sources, device, self.shape, observe)

    def walk(
        self,
        estimate: Callable[[Tensor, Tensor], Tensor],
        sources: list[torch.Generator],
        device: torch.device,
        shape: tuple[int, ...],
        observe: Observer | None = None,
    ) -> Tensor:
        """Sample x_0 [n, *shape] with ``estimate(x_t, t)``, called as a network, from noise of ``shape``."""
        scheduler = self._ready()
        timesteps = torch.tensor(self.timesteps, device=device)
        takes_noise = "generator" in inspect.signature(scheduler.step).parameters
        noise = {"generator": sources} if takes_noise else {}
        scaled = getattr(scheduler, "scale_model_input", lambda x_t, _: x_t)  # schedulers of flows have neither
        x_t = (draw(sources, shape) * getattr(scheduler, "init_noise_sigma", 1.0)).to(device)
        for position, t in enumerate(scheduler.timesteps):
            seen = scaled(x_t, t)
            eps = estimate(seen, timesteps[position].expand(len(seen)))
            if observe is not None:
                observe(position, seen, eps)
            x_t = scheduler.step(eps, t, x_t, return_dict=False, **noise)[0]
        return x_t


def require_finite(x_0: Tensor) -> None:
    """Raises UserError where a number is not finite: as pixels it would look like any other. The host waits for the device:
    afterwards that is there which was begun to be copied before."""
    if not x_0.isfinite().all():
        raise UserError("model.network: its predictions make samples whose numbers are not finite; look into model.weights, "
                        "or, where full precision samples well, give quant more bits")  # fmt: skip


def _taken(scheduler: Target, schedule: Mapping[str, Any]) -> dict[str, Any]:
    """The model's schedule as a scheduler takes it: those of flows alone know of no other prediction, and are not told."""
    told = "prediction_type" in inspect.signature(get_object(scheduler["_target_"])).parameters
    if not told and schedule.get("prediction_type") == FLOW:
        return {name: value for name, value in schedule.items() if name != "prediction_type"}
    return dict(schedule)


def to_images(x_0: Tensor, pixels: str = "round") -> Tensor:
    """x_0 in [-1, 1] as uint8 images in [0, 255], the nearest, or with ``pixels="truncate"`` those below: latent and stable
    diffusion's scripts write such images, half a level darker on average."""
    levels = (x_0.clamp(-1, 1) + 1) * 127.5
    return (levels.round() if pixels == "round" else levels).to(torch.uint8)


_timesteps: dict[str, list[int] | list[float]] = {}


def timesteps_of(model: Model, options: SamplerOptions) -> Sequence[float]:
    """The timesteps of the ``Sampler``, which is made once a process for each noise schedule. Raises as it does."""
    key = json.dumps([model.schedule, options.scheduler, options.steps], sort_keys=True)
    if key not in _timesteps:
        _timesteps[key] = Sampler(model, options).timesteps
    return _timesteps[key]
