"""Selection of calibration rows: from a strategy's positions to rows of a recorded trajectory.

A row is (position, sample): what the network saw of one starting noise at one step of the sampler.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import torch

from qdexp.errors import UserError

Strategy = Callable[[int, int, torch.Generator], Sequence[int]]


def choose_positions(strategy: Strategy, steps: int, timesteps: int, seed: int) -> list[int]:
    """The strategy's positions, sorted; exactly ``timesteps`` of them, each in 0..steps-1.

    Raises UserError where the sampler has too few steps or the strategy breaks its contract.
    """
    if timesteps > steps:
        raise UserError(f"calib.timesteps={timesteps}: the sampler has {steps} steps; lower it, or raise protocol.steps")
    try:
        positions = sorted(strategy(steps, timesteps, torch.Generator().manual_seed(seed)))
    except Exception as error:  # it may be the user's own
        raise UserError(f"calib.strategy: raised {type(error).__name__}: {error}; fix the function") from error
    if len(positions) != timesteps or not all(0 <= p < steps for p in positions):
        raise UserError(f"calib.strategy: {positions} are not {timesteps} positions between 0 and {steps - 1}")
    return positions


def choose_rows(positions: Sequence[int], rows: int, samples: int, seed: int) -> list[tuple[int, int]]:
    """``rows`` samples for each position: ``len(positions) * rows`` distinct pairs (position, sample), in an order that takes
    the timesteps in turn, so that every prefix is stratified over them.

    A repeated position gets other samples each time. Raises UserError where the trajectory holds too few samples.
    """
    most = max(Counter(positions).values()) * rows
    if most > samples:
        raise UserError(
            f"calib.rows={rows}: asks for {most} samples of one timestep, the trajectory holds {samples}; "
            f"lower calib.rows, or raise trajectory.samples"
        )
    generator = torch.Generator().manual_seed(seed)
    queues = {p: iter(torch.randperm(samples, generator=generator).tolist()) for p in dict.fromkeys(positions)}
    return [(p, next(queues[p])) for _ in range(rows) for p in positions]
