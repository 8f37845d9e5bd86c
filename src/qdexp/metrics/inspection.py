"""Inspection of a network: ranges and histograms of what its layers read, and the effect of quantizing each layer alone.

All of it is observed by hooks on forward passes of the full-precision network, so any architecture will do. The hooks add up
on the device: it is waited for once a layer, not once a call.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from typing import Any

import torch
from torch import Tensor, nn

from qdexp.calling import estimate_of
from qdexp.quant.blocks import Batch, arguments, call, first_row
from qdexp.quant.context import knowing, seen
from qdexp.quant.network import execution_order
from qdexp.quant.ranges import MinMaxStream
from qdexp.quant.shortcuts import concatenations

BINS = 64


@dataclass(frozen=True)
class Ranges:
    """Smallest and largest value of a layer's input at each step, [steps]."""

    low: list[float]
    high: list[float]

    @classmethod
    def of(cls, ends: Sequence[Tensor], batches: Sequence[int]) -> "Ranges":
        """Make ranges of the ends, [2], of what was read batch by batch; ``batches``: how many belong to each step."""
        low, high = torch.stack(list(ends)).cpu().unbind(1)
        sizes = list(batches)
        return cls([part.min().item() for part in low.split(sizes)], [part.max().item() for part in high.split(sizes)])


class Histogram:
    """Counts of a part of a concatenation over ``BINS`` equal bins from ``low`` to ``high``, and the part's own range."""

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.counts = torch.zeros((), dtype=torch.float64)  # [BINS] once something was added, where that lies
        self._extremes = MinMaxStream()

    def add(self, x: Tensor) -> None:
        self.counts = self.counts + torch.histc(x.float(), BINS, self.low, self.high)
        self._extremes.observe(x.reshape(1, -1))

    @property
    def range(self) -> tuple[float, float]:
        low, high = self._extremes.range()
        return low.item(), high.item()


@torch.inference_mode()
def input_ranges(network: nn.Module, steps: Sequence[Sequence[Batch]]) -> dict[str, Ranges]:
    """The range of every layer's input at every step, over the step's batches, by the layers' names in execution order."""
    order = execution_order(network, first_row(steps[0][0]))
    ends: dict[str, list[Tensor]] = {name: [] for name in order}
    with _watching(network, order, lambda name, _, inputs: ends[name].append(torch.stack(inputs[0].aminmax()))):
        for batch in chain.from_iterable(steps):
            call(network, batch)
    batches = [len(step) for step in steps]
    once = {name: found for name, found in ends.items() if len(found) == sum(batches)}  # not those that run twice
    return {name: Ranges.of(found, batches) for name, found in once.items()}


@torch.inference_mode()
def shortcut_histograms(
    network: nn.Module, steps: Sequence[Sequence[Batch]], ranges: dict[str, Ranges]
) -> dict[str, list[Histogram]]:
    """Histograms of the parts of every concatenation that a convolution reads directly, over all steps, on common bins."""
    found = concatenations(network, first_row(steps[0][0]))
    sizes = {name: read.sizes for name, read in found.items() if read.direct and name in ranges}
    histograms = {name: [Histogram(min(ranges[name].low), max(ranges[name].high)) for _ in sizes[name]] for name in sizes}

    def count(name: str, _: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        for histogram, part in zip(histograms[name], inputs[0].split(sizes[name], dim=1), strict=True):
            histogram.add(part)

    with _watching(network, sizes, count):
        for batch in chain.from_iterable(steps):
            call(network, batch)
    return histograms


@contextmanager
def _watching(network: nn.Module, names: Iterable[str], hook: Callable[[str, nn.Module, Any], None]) -> Iterator[None]:
    """Calls ``hook(name, layer, inputs)`` before each of the named layers runs."""
    layers = {network.get_submodule(name): name for name in names}
    handles = [layer.register_forward_pre_hook(lambda layer, x: hook(layers[layer], layer, x)) for layer in layers]
    try:
        yield
    finally:
        for handle in handles:
            handle.remove()


@dataclass(frozen=True)
class LayerError:
    """Relative squared errors that come of one quantized layer in a network of full precision.

    ``error``: of the layer's own output. ``sensitivity``: of the noise estimate.
    """

    error: float
    sensitivity: float


@torch.inference_mode()
def layer_errors(network: nn.Module, quantized: dict[str, nn.Module], batches: Sequence[Batch]) -> dict[str, LayerError]:
    """The effect on ``batches`` of each of the ``quantized`` layers, put alone in its place in the full-precision ``network``.

    One forward pass a layer and batch.
    """
    truth = [_estimate(network, batch) for batch in batches]
    errors = {}
    for name, layer in quantized.items():
        swap = _Swap(layer)
        handle = network.get_submodule(name).register_forward_hook(swap)
        try:
            answers = []
            for batch in batches:
                with knowing(layer, seen(*arguments(batch))):  # the network that it belongs to is not called
                    answers.append(_estimate(network, batch))
        finally:
            handle.remove()
        sensitivity = _ratio(zip(answers, truth, strict=True))
        error, power = swap.error.item(), swap.power.item()
        errors[name] = LayerError(error / power if power else 0.0, sensitivity)
    return errors


class _Swap:
    """Runs another layer in a layer's place, and adds up how far the two are apart."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.error = self.power = torch.zeros((), dtype=torch.float64)

    def __call__(self, replaced: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        answer: Tensor = self.layer(*inputs)
        self.error = self.error + (answer - output).double().square().sum()
        self.power = self.power + output.double().square().sum()
        return answer


def _estimate(network: nn.Module, batch: Batch) -> Tensor:
    """The noise estimate alone: a variance that the network predicts beside it is left out."""
    answer: Tensor = estimate_of(call(network, batch))
    return answer[:, : batch[0].shape[1]]


def _ratio(pairs: Iterable[tuple[Tensor, Tensor]]) -> float:
    """sum |a - b|^2 / sum |b|^2."""
    error = power = torch.zeros((), dtype=torch.float64)
    for a, b in pairs:
        error = error + (a - b).double().square().sum()
        power = power + b.double().square().sum()
    return (error / power).item()
