"""Blocks: the parts of a network that are reconstructed one at a time.

A block is a residual block, a transformer block or an attention, or else a layer that lies in none (BRECQ, Li et al. 2021,
arXiv 2102.05426, section 3.2). They are known by their place: an innermost member of a list of modules that has several layers,
and is called once, with the rows of the network's batch. A block's *call* is the arguments that the network gives it; the calls
of several batches are joined to rows, so that a batch of any of them can be run again.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp import calling
from qdexp.errors import UserError
from qdexp.quant.cache import UNBOUNDED, RowCache
from qdexp.quant.context import UNKNOWN, CallState
from qdexp.quant.stored import Stored

LISTS = (nn.ModuleList, nn.ModuleDict, nn.Sequential)

Call = tuple[tuple[Any, ...], dict[str, Any]]
"""Positional and named arguments."""

Batch = Sequence[Any]
"""The arguments of a network: `(x_t, t)`, or `(x_t, t, {"class_labels": labels})` with named arguments at the end."""


def arguments(batch: Batch) -> Call:
    """The arguments for calling a network with a batch."""
    named = batch[-1] if isinstance(batch[-1], Mapping) else {}
    return tuple(part for part in batch if part is not named), dict(named)


def call(network: nn.Module, batch: Batch) -> Any:
    """Run a network.

    Args:
        network: Any module.
        batch: Its arguments, named ones in a dict at the end: ``(x_t, t)`` or ``(x_t, t, {"class_labels": labels})``.

    Returns:
        The network's output.
    """
    args, kwargs = arguments(batch)
    return calling.call(network, *args, kwargs) if len(args) == 2 else network(*args, **kwargs)


def first_row(batch: Batch, rows: int = 1) -> Batch:
    """The batch of its first row alone, to trace a network with, or of its first ``rows``."""
    part: Batch = pytree.tree_map(lambda tensor: tensor[:rows], batch)
    return part


def blocks_of(network: nn.Module, layers: Sequence[str], example: Batch) -> dict[str, tuple[bool, ...]]:
    """The blocks around layers, by their names, in execution order.

    Args:
        network: Runs twice, with one row and with two.
        layers: The names of the layers that can be quantized, in execution order.
        example: One row; may be on the meta device.

    Returns:
        For each leaf of a block's call (in pytree's order) whether it has an entry for each row of the batch.
    """
    held = {name: [layer for layer in layers if layer.startswith(f"{name}.")] for name in _members(network)}
    several = [name for name, inside in held.items() if len(inside) > 1]
    one, two = (_lengths(network, [*several, *layers], batch) for batch in (example, with_another(example)))
    rows = {
        name: tuple((length, more) == (1, 2) for length, more in zip(one[name][0], two[name][0], strict=True))
        for name in one
        if name in two and len(one[name][0]) == len(two[name][0])
    }
    found = [name for name in several if name in rows and len(one[name]) == len(two[name]) == 1 and any(rows[name])]
    inner = {layer: name for name in sorted(found, key=len) for layer in held[name] if not _holds_another(name, found)}
    blocks = dict.fromkeys(inner.get(layer, layer) for layer in layers)
    if changing := next((name for name in blocks if name not in rows), None):
        raise UserError(f"model.network: it calls {changing} otherwise with two rows than with one; it cannot be reconstructed "
                        f"block by block")  # fmt: skip
    return {name: rows[name] for name in blocks}


def with_another(example: Batch) -> Batch:
    """An example of one row, with a second one of other values where these are samples or texts: a module that is called with
    some entries of each row, as experts are, shall not be taken for one that is called with the rows."""

    def both(row: Tensor) -> Tensor:
        return torch.cat([row, 1 - row.flip(-1) if row.is_floating_point() and row.ndim > 1 else row])

    made: Batch = pytree.tree_map(both, example)
    return made


def _members(network: nn.Module) -> Iterator[str]:
    """The names of all members of lists of modules."""
    for name, module in network.named_modules():
        if isinstance(module, LISTS):
            yield from (f"{name}.{own}".removeprefix(".") for own, _ in module.named_children())


def _holds_another(name: str, found: Sequence[str]) -> bool:
    return any(other.startswith(f"{name}.") for other in found)


@torch.no_grad()
def _lengths(network: nn.Module, names: Sequence[str], batch: Batch) -> dict[str, list[list[int | None]]]:
    """The number of entries of every leaf of every call of the modules, None where it is no tensor with any."""
    lengths: dict[str, list[list[int | None]]] = defaultdict(list)
    with ExitStack() as stack:
        for name in names:

            def look(_: nn.Module, args: Any, kwargs: Any, name: str = name) -> None:
                lengths[name].append([_length(leaf) for leaf in pytree.tree_leaves((args, kwargs))])

            stack.callback(network.get_submodule(name).register_forward_pre_hook(look, with_kwargs=True).remove)
        call(network.eval(), batch)
    return lengths


def _length(leaf: Any) -> int | None:
    return len(leaf) if isinstance(leaf, Tensor) and leaf.ndim > 0 else None


def outputs(result: Any) -> tuple[Tensor, ...]:
    """The tensors that a block is measured on: all floating-point tensors of its result."""
    return tuple(leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and leaf.is_floating_point())


class Rows:
    """The joined calls of a block: tensors that have an entry a row, and arguments that all rows share."""

    def __init__(
        self,
        calls: Sequence[Call],
        has_rows: Sequence[bool],
        sizes: Sequence[int],
        cache: RowCache = UNBOUNDED,
        rows: slice = slice(None),
        dtype: torch.dtype | None = None,
        states: Sequence[CallState] = (),
    ) -> None:
        """`calls`: one a batch; `has_rows`: of each leaf of a call; `sizes`: the rows of each batch; `cache`: the calls' own,
        which holds the rows too. `rows`: those to be joined, of all; `dtype`: what floats are kept as, though not handed out;
        `states`: what is known of each batch's rows, if it is. Raises ValueError where an argument has neither an entry a row
        nor one value for all batches."""
        self._spec = pytree.tree_structure(calls[0])
        columns = list(zip(*(pytree.tree_leaves(call) for call in calls), strict=True))
        self._dtypes = [column[0].dtype if joined else None for column, joined in zip(columns, has_rows, strict=True)]
        self._leaves = [
            _shared(column, cache) if kept is None else cache.join(column, rows, dtype)
            for column, kept in zip(columns, self._dtypes, strict=True)
        ]
        self._known = [_joined(parts, cache, rows) for parts in zip(*states or [UNKNOWN], strict=True)]
        self._size = len(range(sum(sizes))[rows])

    def __len__(self) -> int:
        return self._size

    @property
    def stored(self) -> list[Stored]:
        """The tensors that have an entry per row."""
        return [leaf for leaf in (*self._leaves, *self._known) if isinstance(leaf, Stored)]

    def take(self, rows: Tensor | slice) -> Call:
        """The call for these rows: int64 indices in the host's memory, or a slice."""
        pairs = zip(self._leaves, self._dtypes, strict=True)
        leaves = [leaf if dtype is None else leaf[rows].to(dtype) for leaf, dtype in pairs]
        call: Call = pytree.tree_unflatten(leaves, self._spec)
        return call

    def state(self, rows: Tensor | slice) -> CallState:
        """The call state that a network would have, if it were called with these rows."""
        return CallState(*(None if values is None else values[rows] for values in self._known))


def _shared(column: Sequence[Any], cache: RowCache) -> Any:
    """A value that all batches share; a copy of it, if it is a tensor, which stays when theirs are parked."""
    first = column[0]
    if any(_differ(leaf, first, cache) for leaf in column[1:] if leaf is not first):
        raise ValueError("is called with values that differ between batches but have no entry for each of their rows")
    if not isinstance(first, Tensor):
        return first
    with cache.lent(first):
        return first.clone()


def _joined(parts: Sequence[Tensor | None], cache: RowCache, rows: slice) -> Stored | None:
    """The joined state of the rows of every batch; None, if it is not known for them all."""
    known = [part for part in parts if part is not None]
    return cache.join(known, rows) if len(known) == len(parts) else None


def _differ(one: Any, other: Any, cache: RowCache) -> bool:
    tensors = [leaf for leaf in (one, other) if isinstance(leaf, Tensor)]
    if tensors:
        with cache.lent(*tensors):
            return len(tensors) == 1 or not torch.equal(*tensors)
    return isinstance(one, int | float | str) and one != other


def run(block: nn.Module, call: Call, overrides: Mapping[str, Tensor] | None = None) -> tuple[Tensor, ...]:
    """The block's outputs for a call, with some of its parameters and buffers replaced."""
    args, kwargs = call
    if not overrides:
        return outputs(block(*args, **kwargs))
    return outputs(torch.func.functional_call(block, dict(overrides), args, kwargs))
