"""Streams: the forward passes of all calibration batches through one network, pushed forward block by block.

Every pass stands still at the entrance of a block and holds its pending shortcuts, since it is a coroutine (a greenlet) inside
the network's own `forward`. So no block makes the network start again from its input, whatever stands between the blocks, and
n blocks cost one pass instead of n.

    stream = Stream(network, blocks, batches)
    for block in blocks:
        calls = stream.calls          # what each batch hands to the block
        outputs = stream.advance()    # the block runs; all passes go on to the next entrance

Between two calls of `advance` a block may be changed: it runs as it is then. What the network's layers know of the call that
runs (see `context`) is each pass's own.

In a row cache with budgets, what the passes hold, and so calls and outputs, may be parked: see `qdexp.quant.cache`.
"""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from greenlet import getcurrent, greenlet
from torch import Tensor, nn
from torch._C import _len_torch_function_stack
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode, _pop_mode, _push_mode

from qdexp.errors import UserError
from qdexp.quant.blocks import Batch, Call, call, outputs
from qdexp.quant.cache import UNBOUNDED, RowCache, Turn
from qdexp.quant.context import UNKNOWN, CallState, contexts, know


class _Pass(greenlet):
    """One batch's forward pass. `call` is set while it stands at an entrance, `outputs` once the block has run. While it stands
    still, `states` are those of the stream's contexts, and `modes` the function modes that it has entered: torch keeps one
    stack of these a thread, not one a greenlet."""

    def __init__(self, stream: "Stream", network: nn.Module, batch: Batch) -> None:
        super().__init__(lambda: call(network, batch))
        self.stream, self.rows = stream, len(batch[0])
        self.entrance = ""
        self.call: Call = ((), {})
        self.outputs: tuple[Tensor, ...] | None = None
        self.states = [UNKNOWN] * len(stream.contexts)
        self.modes: list[TorchFunctionMode] = []
        self.turn = Turn()


class Stream:
    """See the module's docstring. `blocks` are in execution order; all batches must visit them in this order."""

    def __init__(
        self, network: nn.Module, blocks: Sequence[str], batches: Sequence[Batch], cache: RowCache = UNBOUNDED
    ) -> None:
        self._blocks, self._cache = list(blocks), cache
        self.contexts = contexts(network)
        self._position = 0
        self._collects = False
        self._cache.keep(list(batches))
        self._passes = [_Pass(self, network, batch) for batch in batches]
        self._handles = [handle for name in blocks for handle in self._watch(network.get_submodule(name), name)]
        try:
            self._go_on()
        except BaseException:
            self.close()
            raise

    def _watch(self, block: nn.Module, name: str) -> Iterator[Any]:
        def enter(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
            now = getcurrent()
            if self._owns(now) and self._expects(name):
                now.entrance, now.call = name, (args, kwargs)
                self._cache.see(now.turn, now.call)
                now.parent.switch()
                now.call = ((), {})

        def leave(_: nn.Module, args: tuple[Any, ...], result: Any) -> None:
            now = getcurrent()
            if self._owns(now) and now.entrance == name:
                now.entrance = ""
                if self._collects:
                    now.outputs = tuple(one.clone() for one in outputs(result))  # what follows may work in place
                    self._cache.see(now.turn, now.outputs)

        yield block.register_forward_pre_hook(enter, with_kwargs=True)
        yield block.register_forward_hook(leave)

    def _owns(self, now: Any) -> bool:
        return isinstance(now, _Pass) and now.stream is self

    def _expects(self, name: str) -> bool:
        return self._position < len(self._blocks) and self._blocks[self._position] == name

    @property
    def calls(self) -> list[Call]:
        """Every batch's call of the block at whose entrance the stream stands."""
        return [each.call for each in self._passes]

    @property
    def sizes(self) -> list[int]:
        """The rows of every batch."""
        return [each.rows for each in self._passes]

    @property
    def states(self) -> list[CallState]:
        """The call state of every batch's rows; empty, if no layer of the network needs it."""
        return [each.states[0] if each.states else UNKNOWN for each in self._passes]

    def advance(self, collect: bool = True) -> list[tuple[Tensor, ...]]:
        """Run the block with every batch and go on to the next entrance, or to the end. Returns the block's outputs for each
        batch, if they are to be collected."""
        self._position += 1
        self._collects = collect
        self._go_on()
        found = [each.outputs for each in self._passes]
        for each in self._passes:
            each.outputs = None
        return [value for value in found if value is not None]

    @torch.no_grad()
    def _go_on(self) -> None:
        modes = _modes()
        turns = [each.turn for each in self._passes[1:]]
        for each, following in zip(self._passes, [*turns, None], strict=True):
            with self._cache.turn(each.turn, following), self._seeing(each), self._inside(each):
                each.switch()
            if self._position < len(self._blocks) and each.entrance != self._blocks[self._position]:
                raise UserError(f"model.network: it never calls {self._blocks[self._position]} as a module, or not with every "
                                f"batch; it cannot be reconstructed block by block")  # fmt: skip
            if _modes() != modes:  # they would hold for all that happens while the passes stand still
                raise UserError("model.network: its forward switches autocast or inference mode on around its blocks; "
                                "it cannot be reconstructed block by block")  # fmt: skip

    @contextmanager
    def _seeing(self, each: _Pass) -> Iterator[None]:
        """While a pass runs, the cache gets to know what goes into the network's modules and comes out of them."""

        def see(_: nn.Module, *values: Any) -> None:
            if getcurrent() is each:
                self._cache.see(each.turn, *values)

        if not self._cache.bounded:
            yield
            return
        with register_module_forward_pre_hook(see), register_module_forward_hook(see, with_kwargs=True):
            yield

    @contextmanager
    def _inside(self, each: _Pass) -> Iterator[None]:
        """While a pass runs: the contexts are in its state, and it is in its function modes."""
        outside, depth = [context.state for context in self.contexts], _len_torch_function_stack()
        know(self.contexts, each.states)
        while each.modes:
            _push_mode(each.modes.pop())
        try:
            yield
        finally:
            while _len_torch_function_stack() > depth:
                each.modes.append(_pop_mode())
            each.states = [context.state for context in self.contexts]
            know(self.contexts, outside)

    @torch.no_grad()
    def close(self) -> None:
        """Let go of the network and of the passes that have not ended."""
        for handle in self._handles:
            handle.remove()
        for each in self._passes:
            if each and not each.dead:
                with self._inside(each):
                    each.throw()  # GreenletExit: ends the forward pass silently


def _modes() -> tuple[bool, bool, bool]:
    autocast = (torch.is_autocast_enabled(device) for device in ("cpu", "cuda"))
    return (*autocast, torch.is_inference_mode_enabled())  # type: ignore[return-value]


@contextmanager
def streaming(
    network: nn.Module, blocks: Sequence[str], batches: Sequence[Batch], cache: RowCache = UNBOUNDED
) -> Iterator[Stream]:
    """A stream that is closed at the end, come what may."""
    stream = Stream(network, blocks, batches, cache)
    try:
        yield stream
    finally:
        stream.close()
