"""The reverse process: x_T -> x_0 with any diffusers scheduler.

At each of the scheduler's timesteps t the network estimates the noise eps(x_t, t), and the scheduler makes x_{t-1} from both.
"""

import inspect
from collections.abc import Callable
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from qdexp.config import Model, Protocol
from qdexp.errors import UserError
from qdexp.sampling.noise import draw

Observer = Callable[[int, Tensor, Tensor], None]
"""Called at each step with its position, x_t as the network sees it and eps, both [n, c, h, w]."""


def estimate_noise(network: torch.nn.Module, x_t: Tensor, t: Tensor) -> Tensor:
    """eps(x_t, t): x_t [n, c, h, w], t int64 [n]; of a tuple or a diffusers output, the first element.

    Networks that learned a variance too answer with twice the channels: the first are the noise.
    """
    output = network(x_t, t)
    answer: Tensor = output if isinstance(output, Tensor) else output[0]
    return answer[:, : x_t.shape[1]]


class Sampler:
    """Holds what the protocol fixes: the scheduler and its steps."""

    def __init__(self, model: Model, protocol: Protocol) -> None:
        self.shape = tuple(model.shape)
        self.steps = protocol.steps
        self._scheduler = lambda: instantiate(protocol.scheduler, **model.schedule)
        exact = [float(t) for t in self._ready().timesteps]
        self.timesteps = [int(t) for t in exact]
        if self.timesteps != exact or len(exact) != self.steps:
            raise UserError(
                f"protocol.scheduler={protocol.scheduler['_target_']}: its {len(exact)} timesteps are not {self.steps} whole "
                f"numbers; choose a scheduler that calls the network once a step, at whole timesteps"
            )

    def _ready(self) -> Any:
        """A scheduler of its own for each batch: multistep solvers remember their last outputs.

        It stays on the CPU, where its branches on the timestep wait for no device.
        """
        scheduler = self._scheduler()
        try:
            scheduler.set_timesteps(self.steps)
        except ValueError as error:
            raise UserError(f"protocol.steps={self.steps}: {error}") from error
        return scheduler

    def run(
        self, network: torch.nn.Module, sources: list[torch.Generator], device: torch.device, observe: Observer | None = None
    ) -> Tensor:
        """x_0 [n, c, h, w] in about [-1, 1], on ``device``; one generator a sample gives all its noise."""
        scheduler = self._ready()
        timesteps = torch.tensor(self.timesteps, device=device)
        takes_noise = "generator" in inspect.signature(scheduler.step).parameters
        noise = {"generator": sources} if takes_noise else {}
        x_t = (draw(sources, self.shape) * scheduler.init_noise_sigma).to(device)
        for position, t in enumerate(scheduler.timesteps):
            seen = scheduler.scale_model_input(x_t, t)
            eps = estimate_noise(network, seen, timesteps[position].expand(len(seen)))
            if observe is not None:
                observe(position, seen, eps)
            x_t = scheduler.step(eps, t, x_t, return_dict=False, **noise)[0]
        return x_t


def to_images(x_0: Tensor) -> Tensor:
    """x_0 in [-1, 1] as uint8 images in [0, 255]."""
    return ((x_0.clamp(-1, 1) + 1) * 127.5).round().to(torch.uint8)
