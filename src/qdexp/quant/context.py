"""The call context: at which timestep, and for which branch of classifier-free guidance, a network runs.

A *reader* is a module whose attribute `context` is a `CallContext`. All readers of a network share one, which hooks of the
network set from the arguments of each call and clear at its end, so that a reader may be called alone only where `knowing` says
what it has to know. It is a plain object: it survives `torch.compile(fullgraph=True)`, which a `ContextVar` does not, and a
deep copy of a network has a context of its own. A network that runs in two threads at once is not provided for; two copies are.

The timestep is the network's second argument or the one named `timestep`. The branch comes from `cache_context`, with which
pipelines and qdexp's sampler name each call under guidance ("cond", "uncond").
"""

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.quant.scheme import TimeGroups

BRANCHES = {"cond": True, "uncond": False}
"""The names of branches. Others, such as "cond_uncond", name calls with rows of both."""


class CallState(NamedTuple):
    """The state of a call's rows; None where it is not known. A tensor whose stride is 0 says that all rows have one value.

    Attributes:
        timestep: The timestep of each row, [rows], any dtype, in the network's own units.
        branch: Whether each row is in the conditional branch, bool [rows].
    """

    timestep: Tensor | None = None
    branch: Tensor | None = None


UNKNOWN = CallState()


class CallContext:
    """The context that the readers of one network share about the running call: `timestep` and `branch`, as in `CallState`."""

    def __init__(self) -> None:
        self.timestep: Tensor | None = None
        self.branch: Tensor | None = None
        self.told: bool | None = None
        """The branch of the calls to come, if it is known."""
        self._groups: dict[tuple[float, ...], Tensor] = {}

    @property
    def state(self) -> CallState:
        """The whole state."""
        return CallState(self.timestep, self.branch)

    def know(self, state: CallState) -> None:
        """Replace what is known."""
        self.timestep, self.branch = state
        self._groups = {}

    def enter(self, _: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        """The network's forward pre-hook."""
        self.know(seen(args, kwargs, self.told))

    def leave(self, *_: Any) -> None:
        """The network's forward hook."""
        self.know(UNKNOWN)

    def groups(self, time: TimeGroups) -> Tensor:
        """The group of each row's timestep, int64 [rows]; [1] where all rows have the same one. Computed once a call.

        Raises:
            UserError: The timestep is not known.
        """
        t = self.timestep
        if t is None:
            raise UserError("quant: a grid that follows the timestep does not know it; call the network as network(x, t, ...) "
                            "or with timestep=t, where t is one number or has one for each row")  # fmt: skip
        if time.edges not in self._groups:
            self._groups[time.edges] = time.index(t[:1] if t.shape[0] == 1 or t.stride(0) == 0 else t)
        return self._groups[time.edges]

    def conditional(self) -> Tensor:
        """The rows in the conditional branch, bool [rows].

        Raises:
            UserError: It is not known.
        """
        if self.branch is None:
            raise UserError("quant: a grid for each branch of the guidance does not know which one runs; sample with qdexp, or "
                            "with a pipeline that names it by the network's cache_context")  # fmt: skip
        return self.branch


def seen(args: Sequence[Any], kwargs: Mapping[str, Any], branch: bool | None = None) -> CallState:
    """Read the state off the arguments of a network. Its rows are those of the first tensor of two or more dimensions."""
    inputs = (value for value in (*args, *kwargs.values()) if isinstance(value, Tensor) and value.ndim > 1)
    x = next(inputs, None)
    if x is None:
        return UNKNOWN
    asked = None if branch is None else torch.full((1,), branch, device=x.device).expand(len(x))
    return CallState(_row_values(kwargs.get("timestep", args[1] if len(args) > 1 else None), x), asked)


def _row_values(t: Any, x: Tensor) -> Tensor | None:
    """A timestep as [rows of x]; None where it is no such thing."""
    if isinstance(t, int | float):
        return torch.full((1,), t, device=x.device).expand(len(x))
    if not isinstance(t, Tensor) or t.ndim > 2 or t.numel() not in (1, x.shape[0]):
        return None
    t = t.to(x.device)
    return t.reshape(1).expand(x.shape[0]) if t.numel() == 1 else t if t.ndim == 1 else t.flatten()


def spread(values: Tensor, x: Tensor) -> Tensor:
    """Values of rows, [rows], as [len(x)]: where heads or frames are folded into x's first dimension, each row repeats.

    Raises:
        UserError: That dimension is no multiple of the rows.
    """
    rows, length = values.shape[0], x.shape[0]  # not len(), which no graph leaves open
    if length % rows:
        raise UserError(f"quant: a layer reads a tensor of shape {list(x.shape)}, of which the {rows} rows of the call, whose "
                        f"timesteps differ, have no part each; give it a static grid, or all rows one timestep")  # fmt: skip
    return values if length == rows else values.repeat_interleave(length // rows, output_size=length)


def readers(module: nn.Module) -> Iterator[Any]:
    """All modules inside that read a call context."""
    return (each for each in module.modules() if isinstance(vars(each).get("context"), CallContext))


def contexts(module: nn.Module) -> list[CallContext]:
    """The contexts of the readers inside a module: one, in a network that shares it."""
    found = {id(reader.context): reader.context for reader in readers(module)}
    return list(found.values())


def share(network: nn.Module) -> None:
    """Make all readers of a network read one context, which each call of the network sets. Without readers nothing happens.
    To be called again when there are new ones."""
    own = list(readers(network))
    if not own:
        return
    hooks = (getattr(hook, "__self__", None) for hook in network._forward_pre_hooks.values())
    context = next((owner for owner in hooks if isinstance(owner, CallContext)), None)
    if context is None:
        context = CallContext()
        network.register_forward_pre_hook(context.enter, with_kwargs=True)
        network.register_forward_hook(context.leave, always_call=True)
        vars(network)["cache_context"] = partial(_cache_context, network, context)
    for reader in own:
        reader.context = context


@contextmanager
def _cache_context(network: nn.Module, context: CallContext, name: str, **details: Any) -> Iterator[None]:
    """Set the branch as pipelines do around each call of a network, which may have such a method itself."""
    method = getattr(type(network), "cache_context", None)
    before, context.told = context.told, BRANCHES.get(name)
    try:
        with nullcontext() if method is None else method(network, name, **details):
            yield
    finally:
        context.told = before


def know(found: Sequence[CallContext], states: Sequence[CallState]) -> None:
    """Give each context its state."""
    for context, state in zip(found, states, strict=True):
        context.know(state)


@contextmanager
def knowing(module: nn.Module, state: CallState) -> Iterator[None]:
    """While it lasts, all readers in a module know this: for calls of a part of a network alone."""
    found = contexts(module)
    before = [context.state for context in found]
    know(found, [state] * len(found))
    try:
        yield
    finally:
        know(found, before)
