"""Strategies: the sampling steps that calibration rows come from.

A strategy is a function ``(steps, timesteps, generator) -> positions``: ``timesteps`` positions in a sampler of ``steps``
steps, 0 the first (pure noise) and ``steps - 1`` the last (nearest the image). Positions may repeat. A strategy of your own is
such a function in a file of yours, named as ``calib.strategy._target_``.
"""

import torch


def uniform(steps: int, timesteps: int, generator: torch.Generator) -> list[int]:
    """Evenly spaced over all steps: timestep-aware calibration (Q-Diffusion, sec. 3.3.1). Exactly ``timesteps`` positions."""
    return [(2 * i + 1) * steps // (2 * timesteps) for i in range(timesteps)]


def last(steps: int, timesteps: int, generator: torch.Generator) -> list[int]:
    """The last steps, nearest the image; one of them is what a calibration set of finished images amounts to."""
    return list(range(steps - timesteps, steps))


def first(steps: int, timesteps: int, generator: torch.Generator) -> list[int]:
    """The first steps, nearest the noise."""
    return list(range(timesteps))


def middle(steps: int, timesteps: int, generator: torch.Generator) -> list[int]:
    """The steps in the middle of the sampler."""
    start = (steps - timesteps) // 2
    return list(range(start, start + timesteps))


def random(steps: int, timesteps: int, generator: torch.Generator) -> list[int]:
    """Drawn uniformly, with replacement."""
    return torch.randint(steps, (timesteps,), generator=generator).tolist()


def normal(steps: int, timesteps: int, generator: torch.Generator, mean: float = 0.6, deviation: float = 0.5) -> list[int]:
    """Drawn from a normal distribution over the steps, with replacement, those outside the sampler drawn again.

    ``mean`` and ``deviation`` are fractions of the steps. After PTQ4DM (Shang et al. 2023, sec. 3.3.2), whose timesteps
    t ~ N(mu, T/2) lie nearer the image: mu is 0.4 T in its scripts, counted from the image; positions count from the noise.
    T/2 is the standard deviation here. In the paper it is the variance, and what lies outside is clamped; the scripts have a
    deviation of 0.4 T.
    """
    density = torch.distributions.Normal(mean * steps, deviation * steps)
    edges = torch.arange(steps + 1, dtype=torch.float64)
    weights = density.cdf(edges[1:]) - density.cdf(edges[:-1])
    return torch.multinomial(weights, timesteps, replacement=True, generator=generator).tolist()
