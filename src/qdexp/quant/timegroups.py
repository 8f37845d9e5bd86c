"""Groups of timesteps that share a grid: contiguous, found from the ranges that activations have at each timestep.

A group's grid has to span all ranges of the group, so that a tensor whose own range at t has the width w(t) loses

    log2(W / w(t)) bits,    W the width of the hull of the group's ranges,

beside a grid of its own. The groups chosen are those that lose the fewest bits, summed over timesteps and quantizers. What a
segment loses does not depend on where the others end, so dynamic programming over contiguous segments finds the optimum.

Of the same family are TDQ (So et al. 2023, arXiv 2306.02316), in which a small network tells the scales from t, and the finite
set calibration of TFMQ-DM (Huang et al. 2024, arXiv 2311.16503), in which activations of the time embedding have scales of
each timestep.
"""

from collections.abc import Sequence
from itertools import pairwise

import torch
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.quant.blocks import Batch, arguments, call
from qdexp.quant.context import seen, share
from qdexp.quant.network import activation_quantizers, set_activation_mode
from qdexp.quant.ranges import MinMax
from qdexp.quant.scheme import Time, TimeGroups

NARROWEST = 2.0**-16
"""The share of a quantizer's largest width that a narrower range counts as, lest one dead timestep outweigh all others."""


def choose_groups(timesteps: Sequence[float], lo: Tensor, hi: Tensor, count: int) -> Time:
    """Groups of timesteps that lose the fewest bits.

    Args:
        timesteps: T different ones, ascending, in the network's own units.
        lo: The smallest value of each quantizer's input at each timestep, [T, quantizers]; parts of a concatenation count as
            quantizers of their own. Several quantizers are given one common choice.
        hi: The largest, likewise. Ranges are extended to contain zero, as grids are; for symmetric grids give -m and m.
        count: The number of groups.

    Returns:
        `count` groups, each with at least one of the timesteps, whose edges lie halfway between two; "static" for one group.

    Raises:
        UserError: There are fewer timesteps than groups, or `count` is below 1.
    """
    _check_count(count, len(timesteps))
    if count == 1:
        return "static"
    lost = _lost_bits(lo.cpu().double().clamp_max(0), hi.cpu().double().clamp_min(0))
    least, starts = lost[0], []  # least[j]: of timesteps 0 .. j in as many groups as were opened so far
    for _ in range(count - 1):
        shifted = torch.cat([least.new_tensor([torch.inf]), least[:-1]])
        least, start = (shifted[:, None] + lost).min(dim=0)
        starts.append(start)
    edges, end = [], len(timesteps) - 1
    for start in reversed(starts):
        first = int(start[end])
        edges.append((timesteps[first - 1] + timesteps[first]) / 2)
        end = first - 1
    return TimeGroups(tuple(reversed(edges)))


def _check_count(count: int, timesteps: int) -> None:
    if not 1 <= count <= timesteps:
        raise UserError(f"quant: {count} groups of timesteps cannot be made of {timesteps}; choose 1 to {timesteps}, or "
                        f"calibrate with more timesteps")  # fmt: skip


def _lost_bits(lo: Tensor, hi: Tensor) -> Tensor:
    """The lost bits of each segment, float64 [first, last], summed over its timesteps and all quantizers; infinite where last <
    first."""
    steps = len(lo)
    width = hi - lo
    width = torch.maximum(width, NARROWEST * width.amax(0)).clamp_min(torch.finfo(torch.float64).tiny)
    own = torch.cat([torch.zeros(1, dtype=torch.float64), width.log2().sum(1).cumsum(0)])
    lost = lo.new_full((steps, steps), torch.inf)
    for first in range(steps):
        hull = hi[first:].cummax(0).values - lo[first:].cummin(0).values
        hull = torch.maximum(hull, width[first:].cummax(0).values)
        length = torch.arange(1, steps - first + 1)
        lost[first, first:] = length * hull.log2().sum(1) - (own[first + 1 :] - own[first])
    return lost


@torch.no_grad()
def find_groups(network: nn.Module, batches: Sequence[Batch], count: int) -> Time:
    """Choose groups of timesteps for a converted network, from what its activation quantizers read.

    Its grids are left off: give them the groups by `set_time`, and observe them.

    Args:
        network: The network, in eval mode; its weights may be quantized already.
        batches: Calibration rows, each with its timestep.
        count: The number of groups.

    Returns:
        What `choose_groups` chooses for all quantizers with an observed grid together; "static" where there are none.

    Raises:
        UserError: The batches hold fewer timesteps than groups, or do not tell the timesteps of their rows.
    """
    known = [t for batch in batches if (t := seen(*arguments(batch)).timestep) is not None]
    if len(known) < len(batches):
        raise UserError(
            "quant: groups of timesteps need calibration batches that hold the timestep of each row, as (x_t, t, ...)"
        )
    timesteps = torch.cat(known).unique().tolist()
    _check_count(count, len(timesteps))
    if count == 1 or not any(quantizer.observed for _, quantizer in activation_quantizers(network)):
        return "static"
    set_time(network, TimeGroups(tuple((one + other) / 2 for one, other in pairwise(timesteps))))
    set_activation_mode(network, "off")
    observers = [quantizer.start(MinMax()) for _, quantizer in activation_quantizers(network) if quantizer.observed]
    for batch in batches:
        call(network, batch)
    lo, hi = (torch.cat(ends, 1) for ends in zip(*(observer.range() for observer in observers), strict=True))
    set_activation_mode(network, "off")
    return choose_groups(timesteps, lo, hi, count)


def set_time(network: nn.Module, time: Time) -> None:
    """Let all grids of a converted network but the fixed ones be of another kind, and the network tell its layers the timestep
    where they need it. They are off until `observe_activations`."""
    for _, quantizer in activation_quantizers(network):
        if not quantizer.fixed:
            quantizer.set_time(time)
    share(network)
