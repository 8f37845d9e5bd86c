"""Description of a model and its cost at each bit-width, from its architecture alone, on the meta device.

A multiply-accumulate (MAC) of a b_w-bit weight and a b_a-bit activation counts as b_w b_a bit operations (BOPs); so do the two
products of an attention, Q K^T with both at the activations' bits and P V with P at the softmax's. Values that are not
quantized count as 32 bits. Sizes: nominal is parameters x bits / 8, with the scales and zero points of groups, stored what a
checkpoint's tensors take.
"""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from functools import wraps
from typing import Concatenate, ParamSpec, TypeVar

import torch
from torch import nn

from qdexp.config import Model, Quant
from qdexp.errors import UserError
from qdexp.folding import fold
from qdexp.models import skeleton
from qdexp.models.checkpoint import nominal_bytes
from qdexp.models.conditions import example_row
from qdexp.quant import network as networks
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import QParams
from qdexp.quant.attention import Site, site_of
from qdexp.quant.coverage import Coverage, Wanted
from qdexp.quant.formats import ActFormat, WeightFormat
from qdexp.quant.macs import FULL, Product, count
from qdexp.quant.network import LayerBits
from qdexp.quant.packed import grid_bytes, group_bytes, weights
from qdexp.quant.packing import packed_bytes
from qdexp.quant.scheme import Scheme
from qdexp.quant.shortcuts import Concatenation

P = ParamSpec("P")
T = TypeVar("T")

QPARAMS_BYTES = 5
"""The bytes of one activation's grid: a float32 scale and a uint8 zero point."""
PLACED = LayerBits(8, 8)
"""The bits of every layer in the network that is counted: those of a format come later, by name."""


@dataclass(frozen=True)
class Block:
    """A part that is reconstructed as one. ``reads``: the layers of it that read a concatenation, and its parts' channels."""

    name: str
    kind: str
    parameters: int
    macs: int
    reads: Mapping[str, Concatenation]


@dataclass(frozen=True)
class Description:
    """``network``: with all its quantizers; ``order``: the layers that can be quantized, in execution order; ``sites``: the
    modules that multiply activations; ``products``: what it multiplies in one forward pass of one sample; ``reads``: the layers
    that read a concatenation."""

    network: nn.Module
    parameters: int
    order: Sequence[str]
    sites: Mapping[str, Site]
    reads: Mapping[str, Concatenation]
    products: Sequence[Product]
    blocks: Sequence[Block]

    @property
    def macs(self) -> int:
        """The MACs of one forward pass of one sample."""
        return sum(product.macs for product in self.products)

    def plan(self, quant: Quant) -> dict[str, LayerBits]:
        """The bits of every layer. Raises UserError where ``quant.layers`` names none."""
        return networks.plan_bits(self.network, self.order, **quant.by_layer)

    def coverage(self, quant: Quant) -> Coverage:
        """The coverage: what is quantized, what stays in full precision, and the bit operations of one forward pass of one
        sample."""
        wanted = Wanted(self.plan(quant), self.sites, LayerBits(quant.weight_bits, quant.act_bits), quant.softmax_bits)
        return Coverage(self.network, self.products, self._known(quant), wanted)

    def stored_bytes(self, quant: Quant) -> int:
        """The bytes of the tensors of a quantized checkpoint; their names and schemes, some kilobytes, come on top."""
        packed = weights(self.network)
        kept = (value for name, value in self.network.state_dict().items() if name not in packed)
        total = sum(value.numel() * value.element_size() for value in kept)
        known, act = self._known(quant), ActFormat(quant.act_bits, **asdict(quant.act))
        for name, layer in networks.quantized_layers(self.network):
            bits = known[f"{name}.weight"]
            full = bits == FULL
            total += layer.weight.numel() * layer.weight.element_size() if full else packed_bytes(layer.weight.numel(), bits)
        observed = (name for name, quantizer in networks.activation_quantizers(self.network) if not quantizer.fixed)
        schemes = (act.scheme(known[name]) for name in observed)
        static = sum(scheme is not None and scheme.time == "static" for scheme in schemes)
        times = quant.act.groups if quant.act.time == "groups" else 1
        grids = sum(grid_bytes(scheme, shape) for scheme, shape in self._weights(quant) if scheme is not None)
        return total + grids + static * times * QPARAMS_BYTES

    def nominal_bytes(self, quant: Quant, left_out: int) -> float:
        """See ``qdexp.models.checkpoint.nominal_bytes``."""
        return nominal_bytes(self.parameters, quant.weight_bits, left_out, group_bytes(self._weights(quant)))

    def _weights(self, quant: Quant) -> Iterator[tuple[Scheme | None, torch.Size]]:
        """The scheme and the shape of each weight that can be quantized."""
        plan, weight = self.plan(quant), WeightFormat(quant.weight_bits, **asdict(quant.weight))
        layers = dict(networks.quantized_layers(self.network))
        return ((weight.scheme(bits.weight, layers[name]), layers[name].weight.shape) for name, bits in plan.items())

    def _known(self, quant: Quant) -> dict[str, int]:
        """The bits of all weights and activation quantizers, by name."""
        plan = self.plan(quant)
        known = {f"{name}.weight": bits.weight for name, bits in plan.items()}
        known |= {f"{name}.input_quantizer": bits.act for name, bits in plan.items()}
        for name, quantizer in networks.activation_quantizers(self.network):
            site = site_of(name)
            if site is not None:
                act = plan[self.sites[site].layer].act
                known[name] = quant.softmax_bits if quantizer.fixed and act != FULL else act
        return known


def description_of(model: Model) -> Description | None:
    """Describe a model; None where the network needs values, or conditions of its own: only a stage itself can tell then."""
    try:
        return describe(model)
    except UserError:
        return None


def per_architecture(look: Callable[Concatenate[Model, P], T]) -> Callable[Concatenate[Model, P], T]:
    """``look``, once a process for each network and shape, and whatever else it is given."""
    known: dict[str, T] = {}

    @wraps(look)
    def looked(model: Model, *args: P.args, **kwargs: P.kwargs) -> T:
        key = json.dumps([model.network, model.shape, model.example, args, kwargs], sort_keys=True, default=str)
        if key not in known:
            known[key] = look(model, *args, **kwargs)
        return known[key]

    return looked


@per_architecture
def describe(model: Model) -> Description:
    """Raises UserError where the network cannot run without values: it has to be described by itself."""
    network = skeleton(model).to("meta").requires_grad_(False)
    fold(network)
    try:
        example = example_row(network, model)
        adapter = Adapter(network, example)
        order, sites, reads = adapter.layers, adapter.sites, adapter.concatenations
        parameters = sum(value.numel() for value in network.parameters())
        blocks = [_block(network, name, reads) for name in adapter.blocks]
        _place_quantizers(network, order, sites)
        products = count(network, example)
    except Exception as error:  # whatever the forward of anybody's network does not like about shapes without values
        why = (str(error).splitlines() or [type(error).__name__])[0]
        raise UserError(f"model.network: it cannot run on shapes alone ({why}); only such networks are described") from error
    blocks = [replace(one, macs=sum(p.macs for p in products if _lies_in(p.module, one.name))) for one in blocks]
    return Description(network, parameters, order, sites, reads, products, blocks)


def _block(network: nn.Module, name: str, reads: Mapping[str, Concatenation]) -> Block:
    module = network.get_submodule(name)
    own = {layer: read for layer, read in reads.items() if _lies_in(layer, name)}
    return Block(name, type(module).__name__, sum(p.numel() for p in module.parameters()), 0, own)


def _place_quantizers(network: nn.Module, order: Sequence[str], sites: Mapping[str, Site]) -> None:
    """All that there can be, without any value."""
    networks.convert(network, dict.fromkeys(order, PLACED), sites)
    for _, layer in networks.quantized_layers(network):
        assert layer.weight_scheme is not None
        groups = torch.ones(sum(layer.weight_scheme.granularity.groups(layer.weight.shape)), device="meta")
        layer.set_weight(torch.empty_like(layer.weight, dtype=layer.weight_scheme.dtype), QParams(groups, groups.int()))
    networks.set_activation_mode(network, "on")


def _lies_in(name: str, block: str) -> bool:
    return f"{name}.".startswith(f"{block}.")
