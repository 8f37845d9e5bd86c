"""Split shortcuts: where convolutions read a concatenation, and at which channels its parts meet.

    y = W * concat(h, skip) + b = W_h * h + W_skip * skip + b

In a U-Net's up path the deep features h and the shortcut's differ in range, and so do the slices of the weight that meet them:
one grid for both wastes most levels of one. Quantized in parts, h and skip have a grid each, and W_h and W_skip too
(Q-Diffusion, Li et al. 2023, arXiv 2302.04304, section 3.3). The sum over input channels does not care where it is cut.

Concatenations are found in a traced forward pass, so that nothing depends on what a network calls its layers. A convolution
reads one *directly* where neither a norm nor a nonlinearity lies between (a residual block's 1x1 shortcut), otherwise
*through* them (its first 3x3 convolution).
"""

from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode
from torch.utils.weak import WeakTensorKeyDictionary

from qdexp.errors import NothingToSplitError
from qdexp.quant.blocks import Batch, call

CONCATENATE = {torch.cat, torch.concat, torch.concatenate}
COPY = {  # every channel stays what it was, at most resampled
    *(Tensor.contiguous, Tensor.clone, Tensor.detach, Tensor.to, Tensor.type, Tensor.float, Tensor.half, Tensor.bfloat16),
    *(F.dropout, F.dropout2d, F.interpolate, F.avg_pool1d, F.avg_pool2d),
}
POINTWISE = {  # channels stay apart and in their places, with other values
    *(F.group_norm, F.batch_norm),
    *(F.silu, F.relu, F.leaky_relu, F.elu, F.gelu, F.mish, F.hardswish, torch.relu, torch.tanh, torch.sigmoid),
}
TRANSPARENT = COPY | POINTWISE


@dataclass(frozen=True)
class Concatenation:
    """The numbers of channels of its parts, in order, and whether the convolution reads it directly."""

    sizes: tuple[int, ...]
    direct: bool


def concatenations(network: nn.Module, example: Batch) -> dict[str, Concatenation]:
    """The concatenations that the Conv1d and Conv2d layers of a network read, by the layers' names in the order in which they
    run.

    Layers that read no concatenation along the channels are left out; so are those that read another one, or none, when they
    run again, and those of several groups, whose weights have no input channel of their own for each channel. Runs on the meta
    device too.
    """
    reads: dict[str, set[Concatenation | None]] = defaultdict(set)
    tracer = _Tracer()

    def record(name: str, _: nn.Module, args: tuple[Tensor, ...]) -> None:
        reads[name].add(tracer.known.get(args[0]))

    handles = [
        module.register_forward_pre_hook(partial(record, name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d) and module.groups == 1
    ]
    try:
        with torch.inference_mode(), tracer:
            call(network.eval(), example)
    finally:
        for handle in handles:
            handle.remove()
    same = {name: next(iter(read)) for name, read in reads.items() if len(read) == 1}
    return {name: read for name, read in same.items() if read is not None}


def chosen_sizes(found: Mapping[str, Concatenation], scope: str) -> dict[str, tuple[int, ...]]:
    """The layers among those ``found`` that are to be split, and the numbers of input channels of their parts.

    scope: "skip" (those that read a concatenation directly) or "skip+conv1" (those that read one through norms and
    nonlinearities, too). Raises NothingToSplitError where there is none.
    """
    chosen = {name: read.sizes for name, read in found.items() if read.direct or scope == "skip+conv1"}
    if not chosen:
        raise NothingToSplitError(
            f"quantizer.steps.split.scope={scope}: no convolution of the network reads a concatenation that this splits; set "
            f"it to off"
        )
    return chosen


class _Tracer(TorchFunctionMode):
    """Knows which of the tensors that are alive hold a concatenation."""

    def __init__(self) -> None:
        super().__init__()
        self.known = WeakTensorKeyDictionary()

    def __torch_function__(
        self, func: Callable[..., Any], types: Iterable[type], args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = kwargs or {}
        made = func(*args, **kwargs)
        if isinstance(made, Tensor):
            found = self._concatenation(func, *args, **kwargs)
            self.known.pop(made, None)  # an operation in place returns what it was given
            if found is not None:
                self.known[made] = found
        return made

    def _concatenation(self, func: Callable[..., Any], *args: Any, **kwargs: Any) -> Concatenation | None:
        """The concatenation in the result of `func(*args, **kwargs)`. An operation of none of the three kinds ends the
        trail."""
        if func in CONCATENATE:
            return self._joined(*args, **kwargs)
        if not args or func not in TRANSPARENT:
            return None
        source: Concatenation | None = self.known.get(args[0])
        return source and replace(source, direct=source.direct and func in COPY)

    def _joined(self, tensors: Sequence[Tensor], dim: int = 0, axis: int | None = None, **_: Any) -> Concatenation | None:
        """A concatenation along the channels of [n, c, ...]; a part that is one itself gives all of its own parts."""
        if tensors[0].ndim < 3 or (dim if axis is None else axis) not in (1, 1 - tensors[0].ndim):
            return None
        own = (self.known.get(part, Concatenation((part.shape[1],), True)) for part in tensors if part.numel())
        sizes = tuple(size for part in own for size in part.sizes)
        return Concatenation(sizes, direct=True) if len(sizes) > 1 else None
