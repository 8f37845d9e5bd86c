"""Bytes of block-wise learning: of its rows, of learning a block, of rounding a layer by second order.

A dry run on the meta device with one learning batch for all rows: at each block it looks at what the passes hold, and takes a
training step with the batch.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp import models
from qdexp.config import Model
from qdexp.config.learning import ScaleLearning, WeightLearning
from qdexp.folding import fold
from qdexp.footprint.passes import batch_of, full, tracing
from qdexp.live import Live
from qdexp.models.describe import describe, per_architecture
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import QParams
from qdexp.quant.blocks import Call, Rows
from qdexp.quant.cache import UNBOUNDED
from qdexp.quant.gptq import gptq
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.network import LayerBits, convert, quantized_layers, set_activation_mode
from qdexp.quant.scheme import PerChannel, Scheme
from qdexp.quant.streams import streaming

WEIGHTS, SCALES = "weights", "scales"
"""The two things that are learned of a block."""
SMALL = 256
"""Columns with which second-order rounding is traced: its bytes are as their square, or as columns times outputs."""


@dataclass(frozen=True)
class Walked:
    """The peak memory of block-wise learning, at whichever block that is.

    Attributes:
        row: Bytes that a row of the calibration set takes: what both networks' passes hold for it, and what is joined.
        step: The peak of a training step with one batch of rows; 0 where nothing is learned.
        second_order: The peak of rounding a layer by second order; 0 where none is.
    """

    row: int
    step: int
    second_order: int


@per_architecture
def walked(model: Model, kind: str, batch: int, start: str | None) -> Walked:
    """The memory of learning ``kind`` with ``batch`` rows at a time; ``start`` of the rounding: ``gptq`` or ``nearest``; None:
    GPTQ alone, nothing is learned."""
    network = rounded(model) if kind == WEIGHTS else describe(model).network
    set_activation_mode(network, "on")
    own, paired = blocks(model), kind == WEIGHTS and start != "nearest"
    row, step = 0, 0
    seen: dict[object, int] = {}
    rows = batch_of(network, model, batch)
    with tracing() as live, torch.no_grad(), streaming(network, list(own), [rows]) as stream:
        for name, has_rows in own.items():
            held, calls = live.now, stream.calls
            joined = _bytes_of_rows(calls[0], has_rows)
            (outputs,) = stream.advance()
            given = sum(one.nbytes for one in outputs)
            if start is not None:
                looks = _looks(network.get_submodule(name), calls[0], outputs)
                if looks not in seen:
                    block, original = (one.get_submodule(name) for one in (network, full(model)))
                    seen[looks] = step_bytes(kind, start, block, original, Rows(calls, has_rows, [batch]), outputs)
                step = max(step, seen[looks])
            del calls, outputs  # of the next block they are no part
            gone_on = live.now
            # the full-precision passes go on first: what they leave is joined, beside what the quantized ones still hold
            row = max(row, held + max(held, gone_on + joined + 2 * given) + (joined if paired else 0))
    return Walked(row // batch, step, max(map(_second_order, _layers(network)), default=0) if paired else 0)


def _bytes_of_rows(call: Call, has_rows: Sequence[bool]) -> int:
    """The bytes per row of the arguments that a block is called with, once they are joined."""
    leaves = zip(pytree.tree_leaves(call), has_rows, strict=True)
    return sum(leaf.nbytes for leaf, joined in leaves if joined)


@per_architecture
def blocks(model: Model) -> Mapping[str, Sequence[bool]]:
    """The blocks that are learned one at a time, in execution order, see ``qdexp.quant.blocks.blocks_of``."""
    return Adapter(full(model), batch_of(full(model), model, 1)).blocks


@per_architecture
def rounded(model: Model) -> nn.Module:
    """The network with weights on grids and activations in full precision, as rounding is learned."""
    network = models.skeleton(model).to("meta").requires_grad_(False)
    fold(network)
    convert(network, dict.fromkeys(describe(model).order, LayerBits(8, 32)))
    for layer in _layers(network):
        assert layer.weight_scheme is not None
        groups = torch.ones(sum(layer.weight_scheme.granularity.groups(layer.weight.shape)), device="meta")
        layer.set_weight(torch.empty_like(layer.weight, dtype=layer.weight_scheme.dtype), QParams(groups, groups.int()))
    return network


def _layers(network: nn.Module) -> Iterator[QuantizedLayer]:
    return (layer for _, layer in quantized_layers(network) if layer.weight_scheme is not None)


def _looks(block: nn.Module, call: Call, outputs: Sequence[Tensor]) -> object:
    """Equal for blocks of which a step takes the same."""
    shapes = [getattr(leaf, "shape", None) for leaf in pytree.tree_leaves((call, outputs))]
    return type(block), str([(name, value.shape) for name, value in block.state_dict().items()]), str(shapes)


def step_bytes(kind: str, start: str, block: nn.Module, original: nn.Module, rows: Rows, targets: Sequence[Tensor]) -> int:
    """The peak of a training step with all ``rows`` of a block, the states of Adam with it, after one before it."""
    from qdexp.recon.learning import ScaleReconstruction, Site, WeightReconstruction  # late: Lightning takes seconds

    with torch.enable_grad(), Live() as live:
        site = Site(block, original, rows, [UNBOUNDED.join([target]) for target in targets])
        if kind == WEIGHTS:
            module: Any = WeightReconstruction(site, WeightLearning(iterations=2, rate=0.1, start=start), 1.0)  # type: ignore[arg-type]
        else:
            module = ScaleReconstruction(site, ScaleLearning(iterations=2, rate=0.1), 1.0)
        learned = [value for value in module.parameters() if value.requires_grad]
        if not learned:
            return 0
        _states = [torch.zeros_like(value) for value in learned for _ in range(2)]
        for value in learned:
            value.grad = torch.zeros_like(value)
        live.peak = live.now
        loss = module.training_step(site.take(slice(0, len(rows))), 1)
        module.zero_grad(set_to_none=True)
        loss.backward()
    return live.peak


def _second_order(layer: QuantizedLayer) -> int:
    groups = getattr(layer, "groups", 1)
    return second_order(groups, layer.weight[0].numel(), len(layer.weight) // groups)


def second_order(groups: int, columns: int, outputs: int) -> int:
    """The peak of rounding weights [groups, outputs, columns] by second order, their moments with it."""
    square, linear = _second_order_shares()
    return int(groups * columns * (square * columns + linear * outputs))


@cache
def _second_order_shares() -> tuple[float, float]:
    """Bytes of rounding by second order, for each column squared and for each column times output."""

    def peak(outputs: int) -> int:
        weight, scheme = torch.zeros(outputs, SMALL, device="meta"), Scheme(8, PerChannel(0))
        grid = QParams(torch.ones(outputs, device="meta"), torch.ones(outputs, device="meta").int())
        with torch.no_grad(), Live() as live:
            moments, shift = (torch.zeros(1, size, SMALL, device="meta") for size in (SMALL, outputs))
            gptq(weight, grid, scheme, moments, shift)
        return live.peak

    few, many = peak(1), peak(1 + SMALL)
    return few / SMALL**2, (many - few) / SMALL**2
