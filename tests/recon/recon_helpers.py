"""A small network to reconstruct, and how its blocks fared."""

import copy
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from qdexp.config import BlockWise, Memory, ScaleLearning, WeightLearning
from qdexp.quant import NormSearch, convert, observe_activations, plan_bits, quantize_weights
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.network import activation_quantizers, quantized_layers, split
from qdexp.quant.streams import streaming
from qdexp.recon.walk import Walk

Batches = Sequence[Batch]

WEIGHTS = WeightLearning(
    batch=4, heldout=8, start="nearest", iterations=4, rate=0.1, regulariser=3.0, warmup=0.2, beta=[20, 2], balanced=True
)
SCALES = ScaleLearning(batch=4, heldout=8, iterations=4, rate=0.01, power=2.0)

FILES = Memory(host_gb=0)
"""All rows lie in files."""


@dataclass
class Recon:
    """How both are learned."""

    weights: WeightLearning
    scales: ScaleLearning


def recon(**changes: Any) -> Recon:
    """`WEIGHTS` and `SCALES` with other options."""
    weights = replace(WEIGHTS, **{name: value for name, value in changes.items() if hasattr(WEIGHTS, name)})
    return Recon(weights, replace(SCALES, **{name: value for name, value in changes.items() if hasattr(SCALES, name)}))


def batches(*sizes: int) -> Batches:
    """Calibration rows (x_t, t) for `tiny_unet`."""
    generator = torch.Generator().manual_seed(1)

    def batch(rows: int) -> tuple[Tensor, Tensor]:
        return torch.randn(rows, 1, 8, 8, generator=generator), torch.randint(0, 1000, (rows,), generator=generator)

    return [batch(rows) for rows in sizes]


@dataclass
class Pair:
    """A network with quantized weights, and the full-precision one."""

    network: nn.Module
    full: nn.Module
    blocks: Mapping[str, Sequence[bool]]
    data: Batches

    def walk(self, folder: Path, options: Recon | None = None, seed: int = 0, memory: Memory = Memory()) -> "Walks":  # noqa: B008 - frozen
        folder.mkdir(parents=True, exist_ok=True)
        return Walks(self, options or recon(), seed, folder, memory)

    def observe(self) -> "Pair":
        """Switch activation quantization on."""
        observe_activations(self.network, self.data, NormSearch())
        return self

    def state(self) -> dict[str, Tensor]:
        """Everything that may have been learned."""
        weights = {name: layer.weight for name, layer in quantized_layers(self.network)}
        return weights | {f"{name}.scale": each.scale for name, each in activation_quantizers(self.network)}

    def error(self) -> float:
        """Of the whole network's output, relative, squared."""
        with torch.no_grad():
            parts = [[network(*batch)[0] for batch in self.data] for network in (self.network, self.full)]
        ours, theirs = (torch.cat(part) for part in parts)
        return float((ours - theirs).square().sum() / theirs.square().sum())


@dataclass
class Walks:
    """Walks of a pair with the options of each."""

    pair: Pair
    options: Recon
    seed: int
    folder: Path
    memory: Memory

    def _walk(self, options: BlockWise) -> Walk:
        return Walk(self.pair.network, self.pair.full, self.pair.blocks, options, self.seed, self.folder, self.memory)

    def learn_weights(self, batches: Batches) -> None:
        self._walk(self.options.weights).learn_weights(batches)

    def round_weights(self, batches: Batches) -> None:
        self._walk(self.options.weights).round_weights(batches)

    def learn_scales(self, batches: Batches) -> None:
        self._walk(self.options.scales).learn_scales(batches)


def pair(full: nn.Module, data: Batches, weight_bits: int, act_bits: int = 32, **options: Any) -> Pair:
    """Weights rounded to the nearest level; activations not quantized yet."""
    network = copy.deepcopy(full.requires_grad_(False))
    adapter = Adapter(network, first_row(data[0]))
    plan = plan_bits(network, adapter.layers, weight_bits, act_bits, layers=options.pop("layers", None))
    split(network, options.pop("splits", {}))
    convert(network, plan, adapter.sites, **options)
    quantize_weights(network, NormSearch(), nearest)
    return Pair(network, full, adapter.blocks, data)


def table(folder: Path) -> list[dict[str, Any]]:
    """`blocks.json`, a dict a block; it must be JSON of the strict kind."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    columns = json.loads((folder / "blocks.json").read_text(), parse_constant=refuse)
    assert list(columns) == ["block", "before", "learned", "kept"]
    return [dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True)]


def joined(outputs: Sequence[tuple[Tensor, ...]]) -> list[Tensor]:
    """A block's outputs, all batches in one."""
    return [torch.cat(parts) for parts in zip(*outputs, strict=True)]


def held_out_errors(pair: Pair, rows: int) -> dict[str, float]:
    """Every block's relative squared error on the last rows, inputs and outputs from passes through the finished networks."""
    errors, names = {}, list(pair.blocks)
    with streaming(pair.full, names, pair.data) as full, streaming(pair.network, names, pair.data) as network:
        for name in names:
            ours, theirs = ([one[-rows:].double() for one in joined(stream.advance())] for stream in (network, full))
            missed = sum((one - other).square().sum() for one, other in zip(ours, theirs, strict=True))
            errors[name] = float(missed / sum(one.square().sum() for one in theirs))
    return errors


def equal(one: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    """To the last bit."""
    assert one.keys() == other.keys()
    return all(torch.equal(one[name], other[name]) for name in one)


def differing(one: dict[str, Tensor], other: dict[str, Tensor]) -> Sequence[str]:
    """The names of what is not equal."""
    return [name for name in one if not torch.equal(one[name], other[name])]
