"""Calls of a network, and the parameterisation of its prediction.

It is called ``network(x_t, t, ...)``, or by the name ``timestep`` where that is not its second argument, as in transformers
that take the text before it. What it predicts is up to ``model.schedule.prediction_type``: the noise (``epsilon``, the
default), v, x_0, or the velocity of a flow.
"""

import inspect
from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

torch.backends.mha.set_fastpath_enabled(
    False
)  # torch's encoder layers would read weights past the modules, and past quantizers

TIMESTEP = "timestep"
FLOW = "flow_prediction"
"""The velocity eps - x_0 of x_t = (1 - s) x_0 + s eps, where s is t by the number of timesteps (Lipman et al. 2023, arXiv
2210.02747; Esser et al. 2024, arXiv 2403.03206)."""


def call(network: nn.Module, x_t: Any, t: Any, named: Mapping[str, Any]) -> Any:
    """Return the output of the network for noisy samples [n, ...] at the timesteps t [n] and named conditions."""
    return network(x_t, **{TIMESTEP: t}, **named) if _by_name(network) else network(x_t, t, **named)


def estimate_of(returned: Any) -> Any:
    """Return the prediction in a network's output: the first element of a tuple, a dict or a diffusers output."""
    if isinstance(returned, torch.Tensor):
        return returned
    return next(iter(returned.values() if isinstance(returned, Mapping) else returned))


def _by_name(network: nn.Module) -> bool:
    own = getattr(network, "_orig_mod", network)  # what torch.compile has wrapped takes anything
    taken = list(inspect.signature(own.forward).parameters)
    return TIMESTEP in taken[2:]
