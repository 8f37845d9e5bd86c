"""Runs of a block in the iterations: as it stands or compiled, in float32 or bfloat16."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache, partial
from typing import Any

import torch
from torch import Tensor, nn

from qdexp.config.learning import Iterations
from qdexp.quant.blocks import Call, outputs, run

Run = Callable[[Call, Mapping[str, Tensor]], tuple[Tensor, ...]]
"""The block's outputs for a call, with some of its parameters and buffers replaced."""


@contextmanager
def running(block: nn.Module, options: Iterations) -> Iterator[Run]:
    """Prepare the run of a block as `options` say."""
    norms = [module for module in block.modules() if isinstance(module, nn.GroupNorm) and options.precision != "float32"]
    handles = [norm.register_forward_pre_hook(_widen) for norm in norms]
    try:
        yield partial(_run_compiled, _Bare(block)) if options.compile else partial(run, block)
    finally:
        for handle in handles:
            handle.remove()


def _widen(_: nn.Module, args: tuple[Tensor]) -> tuple[Tensor]:
    """Autocast does so itself on CUDA; on a CPU the norm would take five times as long in bfloat16."""
    return (args[0].float(),)


class _Bare(nn.Module):
    """A block without the hooks that streams have put around it: those switch to other stacks, which cannot be compiled."""

    def __init__(self, block: nn.Module) -> None:
        super().__init__()
        self.block = block

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, ...]:
        return outputs(self.block.forward(*args, **kwargs))


def _run_compiled(bare: _Bare, call: Call, overrides: Mapping[str, Tensor]) -> tuple[Tensor, ...]:
    return _compiled()(bare, {f"block.{name}": value for name, value in overrides.items()}, *call)


@cache
def _compiled() -> Callable[..., tuple[Tensor, ...]]:
    """One for all blocks: those of the same kind and shape share the code. Every other one is a recompilation, of which torch
    would allow eight and then run the block uncompiled."""
    import torch._dynamo  # late: it takes seconds

    torch._dynamo.config.recompile_limit = torch._dynamo.config.accumulated_recompile_limit = sys.maxsize
    return torch.compile(_replaced, dynamic=False)


def _replaced(
    block: nn.Module, overrides: Mapping[str, Tensor], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[Tensor, ...]:
    result: tuple[Tensor, ...] = torch.func.functional_call(block, dict(overrides), args, kwargs)
    return result
