"""DDIM as in its authors' code, which no scheduler of diffusers reaches by its options (Song et al. 2021, arXiv 2010.02502).

With abar_t the cumulative product of 1 - beta, t' the timestep after t, and z standard normal noise:

    x_t' = sqrt(abar_t') x_0 + sqrt(1 - abar_t' - sigma^2) eps + sigma z,                                      eq. 12
    x_0  = (x_t - sqrt(1 - abar_t) eps) / sqrt(abar_t),
    sigma = eta sqrt((1 - abar_t') / (1 - abar_t)) sqrt(1 - abar_t / abar_t').                                 eq. 16
"""

from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from torch import Tensor

from qdexp.sampling.noise import draw

SKIPS = ("uniform", "quadratic")
NOISE = frozenset(
    {"num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "rescale_betas_zero_snr"}
    | {"prediction_type"}
)
"""The options of a noise schedule, and of what the network predicts."""


class DDIM:
    """A scheduler with the interface of diffusers; the other arguments are those of a noise schedule.

    eta: 0 deterministic, 1 as noisy as DDPM. skip: timesteps evenly spaced, or quadratically, dense near the image, up to 0.8
    of the schedule (appendix D.2); the latter visits some timesteps twice where there are many, as the original does.
    steps_offset: added to every timestep (latent diffusion: 1). set_alpha_to_one: abar after the last step is 1, not abar_0.
    """

    init_noise_sigma = 1.0

    def __init__(
        self,
        eta: float = 0.0,
        skip: str = "uniform",
        steps_offset: int = 0,
        set_alpha_to_one: bool = True,
        **schedule: Any,
    ) -> None:
        if skip not in SKIPS:
            raise ValueError(f"skip={skip}: choose {' or '.join(SKIPS)}")
        if not 0 <= eta <= 1:
            raise ValueError(f"eta={eta}: choose 0 to 1")
        if schedule.keys() - NOISE:
            raise ValueError(f"{min(schedule.keys() - NOISE)}: no option of this scheduler")
        noise = DDIMScheduler(**schedule)
        if noise.config.prediction_type not in ("epsilon", "v_prediction"):
            raise ValueError(f"prediction_type={noise.config.prediction_type}: choose epsilon or v_prediction")
        self.eta, self.skip, self.steps_offset = eta, skip, steps_offset
        self.alphas_bar, self.predicts_v = noise.alphas_cumprod, noise.config.prediction_type == "v_prediction"
        self.final_alpha_bar = torch.tensor(1.0) if set_alpha_to_one else self.alphas_bar[0]

    def set_timesteps(self, steps: int) -> None:
        """Raises ValueError where the skip gives another number of timesteps, or timesteps beyond the schedule.

        The original's uniform skip takes every (count // steps)-th timestep, whose number may be larger: what it calls 400 of
        1000 steps are 500. The real number has to be given.
        """
        count = len(self.alphas_bar)
        skip = max(count // steps, 1)
        exact = np.arange(0.0, count, skip) if self.skip == "uniform" else np.linspace(0, np.sqrt(0.8 * count), steps) ** 2
        times = exact.astype(np.int64) + self.steps_offset
        if len(times) != steps:
            raise ValueError(f"uniform skip takes every {skip}. of {count} timesteps, {len(times)} in all; "
                             f"choose {len(times)}, or a divisor of {count}")  # fmt: skip
        if times[-1] >= count:
            raise ValueError(f"the timesteps go up to {times[-1]}, the schedule to {count - 1}; choose fewer")
        self.timesteps = torch.from_numpy(times[::-1].copy())
        self._step = 0

    def scale_model_input(self, x_t: Tensor, t: Tensor) -> Tensor:
        """x_t itself."""
        return x_t

    def step(
        self, answer: Tensor, t: Tensor, x_t: Tensor, generator: list[torch.Generator], return_dict: bool = False
    ) -> tuple[Tensor]:
        """(x_t',), from the network's prediction for x_t [n, c, h, w]; one generator a sample. For each timestep in order."""
        self._step += 1
        last = self._step == len(self.timesteps)
        now, ahead = self.alphas_bar[t], self.final_alpha_bar if last else self.alphas_bar[self.timesteps[self._step]]
        x_0, eps = self._split(answer, x_t, now)
        sigma = self.eta * ((1 - ahead) / (1 - now) * (1 - now / ahead)).sqrt()
        x = ahead.sqrt() * x_0 + (1 - ahead - sigma**2).sqrt() * eps
        if sigma > 0:
            x = x + sigma * draw(generator, tuple(x_t.shape[1:])).to(x_t.device)
        return (x,)

    def _split(self, answer: Tensor, x_t: Tensor, abar: Tensor) -> tuple[Tensor, Tensor]:
        """x_0 and eps; a network may predict v = sqrt(abar) eps - sqrt(1 - abar) x_0 instead (Salimans and Ho 2022)."""
        signal, noise = abar.sqrt(), (1 - abar).sqrt()
        if self.predicts_v:
            return signal * x_t - noise * answer, signal * answer + noise * x_t
        return (x_t - noise * answer) / signal, answer
