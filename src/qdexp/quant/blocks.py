"""Blocks: the parts of a network that are reconstructed one at a time.

A block is the outermost residual block, transformer block or attention around a layer, or else the layer itself (BRECQ, Li et
al. 2021, arXiv 2102.05426, section 3.2). A block's *call* is what the network hands to it; the calls of several batches are
joined to rows, so that a batch of any of them can be run again.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import torch
from diffusers.models.attention import BasicTransformerBlock
from diffusers.models.attention_processor import Attention
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp.quant.context import UNKNOWN, CallState
from qdexp.quant.filed import Filed
from qdexp.quant.memory import UNLIMITED, Memory

BLOCKS: tuple[type[nn.Module], ...] = (ResnetBlock2D, BasicTransformerBlock, Attention)

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""

Batch = Sequence[Any]
"""What a network is called with: positional arguments, and named ones in a mapping at the end. `(x_t, t)`, or
`(x_t, t, {"class_labels": labels})`."""


def arguments(batch: Batch) -> Call:
    """How a network is called with a batch."""
    named = batch[-1] if isinstance(batch[-1], Mapping) else {}
    return tuple(part for part in batch if part is not named), dict(named)


def call(network: nn.Module, batch: Batch) -> Any:
    """What the network answers to a batch."""
    args, kwargs = arguments(batch)
    return network(*args, **kwargs)


def first_row(batch: Batch, rows: int = 1) -> Batch:
    """The batch of its first row alone, to trace a network with, or of its first ``rows``."""
    part: Batch = pytree.tree_map(lambda tensor: tensor[:rows], batch)
    return part


def blocks_of(network: nn.Module, layers: Iterable[str]) -> list[str]:
    """The names of the blocks around `layers`, which are in execution order: so are the blocks."""
    return list(dict.fromkeys(_outermost(network, layer) for layer in layers))


def _outermost(network: nn.Module, layer: str) -> str:
    parts = layer.split(".")
    around = (".".join(parts[:end]) for end in range(1, len(parts)))
    return next((name for name in around if isinstance(network.get_submodule(name), BLOCKS)), layer)


def output(result: Any) -> Tensor:
    """What a block is measured on: its result, or the first tensor of it."""
    return next(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor))


class Rows:
    """The joined calls of a block: tensors that have an entry a row, and arguments that all rows share."""

    def __init__(
        self,
        calls: Sequence[Call],
        sizes: Sequence[int],
        memory: Memory = UNLIMITED,
        rows: slice = slice(None),
        dtype: torch.dtype | None = None,
        states: Sequence[CallState] = (),
    ) -> None:
        """`calls`: one a batch; `sizes`: the rows of each batch; `memory`: the calls' own, which holds the rows too. `rows`:
        those to be joined, of all; `dtype`: what floats are kept as, though not handed out; `states`: what is known of each
        batch's rows, if it is. Raises ValueError where an argument has neither an entry a row nor one value for all batches."""
        self._spec = pytree.tree_structure(calls[0])
        columns = list(zip(*(pytree.tree_leaves(call) for call in calls), strict=True))
        self._dtypes = [column[0].dtype if _has_rows(column, sizes) else None for column in columns]
        self._leaves = [
            memory.join(column, rows, dtype) if joined else _shared(column, memory)
            for column, joined in zip(columns, self._dtypes, strict=True)
        ]
        self._known = [_joined(parts, memory, rows) for parts in zip(*states or [UNKNOWN], strict=True)]
        self._size = len(range(sum(sizes))[rows])

    def __len__(self) -> int:
        return self._size

    def take(self, rows: Tensor | slice) -> Call:
        """The call for these rows: int64 indices on the device of the rows, or a slice."""
        pairs = zip(self._leaves, self._dtypes, strict=True)
        leaves = [leaf if dtype is None else leaf[rows].to(dtype) for leaf, dtype in pairs]
        call: Call = pytree.tree_unflatten(leaves, self._spec)
        return call

    def state(self, rows: Tensor | slice) -> CallState:
        """What a network would know of these rows, if it were called with them."""
        return CallState(*(None if values is None else values[rows] for values in self._known))


def _has_rows(column: Sequence[Any], sizes: Sequence[int]) -> bool:
    """Whether an argument, one value a batch, has an entry for each row. A tensor handed to every batch never does, even if it
    is as long as all of them."""
    if len(column) > 1 and all(leaf is column[0] for leaf in column):
        return False
    lengths = [len(leaf) if isinstance(leaf, Tensor) and leaf.ndim > 0 else None for leaf in column]
    return lengths == list(sizes)


def _shared(column: Sequence[Any], memory: Memory) -> Any:
    """What all batches hand over; a copy of it, if it is a tensor, which stays when theirs are parked."""
    first = column[0]
    if any(_differ(leaf, first, memory) for leaf in column[1:] if leaf is not first):
        raise ValueError("a block is called with values that differ between batches but have no entry for each of their rows")
    if not isinstance(first, Tensor):
        return first
    with memory.lent(first):
        return first.clone()


def _joined(parts: Sequence[Tensor | None], memory: Memory, rows: slice) -> Tensor | Filed | None:
    """What is known of the rows of every batch; nothing, if it is not known of them all."""
    known = [part for part in parts if part is not None]
    return memory.join(known, rows) if len(known) == len(parts) else None


def _differ(one: Any, other: Any, memory: Memory) -> bool:
    tensors = [leaf for leaf in (one, other) if isinstance(leaf, Tensor)]
    if tensors:
        with memory.lent(*tensors):
            return len(tensors) == 1 or not torch.equal(*tensors)
    return isinstance(one, int | float | str) and one != other


def run(block: nn.Module, call: Call, overrides: Mapping[str, Tensor] | None = None) -> Tensor:
    """The block's output for a call, with some of its parameters and buffers replaced."""
    args, kwargs = call
    if not overrides:
        return output(block(*args, **kwargs))
    return output(torch.func.functional_call(block, dict(overrides), args, kwargs))
