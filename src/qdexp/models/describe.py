"""What a model is made of and what it costs at each bit-width, read off its architecture alone, on the meta device.

A multiply-accumulate (MAC) of a b_w-bit weight and a b_a-bit activation counts as b_w b_a bit operations (BOPs); so do the two
products of an attention, Q K^T with both at the activations' bits and P V with P at the softmax's. Values that are not
quantized count as 32 bits. Sizes: nominal is parameters x bits / 8, stored what a checkpoint's tensors take.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from qdexp.config import Model, Quant
from qdexp.errors import UserError
from qdexp.models import skeleton
from qdexp.models.conditions import example_condition
from qdexp.quant import network as networks
from qdexp.quant.blocks import Batch, blocks_of, call
from qdexp.quant.network import LayerBits
from qdexp.quant.packing import packed_bytes
from qdexp.quant.shortcuts import Concatenation, concatenations

QPARAMS_BYTES = 5
"""Of one group: a float32 scale and a uint8 zero point."""


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
    """``layers``: MACs of each in execution order; ``products``: MACs of one of the two products of each attention."""

    network: nn.Module
    layers: Mapping[str, int]
    products: Mapping[str, int]
    blocks: Sequence[Block]

    @property
    def parameters(self) -> int:
        return sum(value.numel() for value in self.network.parameters())

    @property
    def macs(self) -> int:
        """Of one forward pass of one sample."""
        return sum(self.layers.values()) + 2 * sum(self.products.values())

    def bops(self, quant: Quant) -> int:
        """Of one forward pass of one sample."""
        plan = self._plan(quant)
        total = sum(macs * plan[name].weight * plan[name].act for name, macs in self.layers.items())
        for name, macs in self.products.items():
            act = plan[f"{name}.to_q"].act
            softmax = networks.FLOAT if act == networks.FLOAT else quant.softmax_bits
            total += macs * (act * act + softmax * act)
        return total

    def stored_bytes(self, quant: Quant) -> int:
        """Of the tensors of a quantized checkpoint; their names and schemes, some kilobytes, come on top."""
        plan, total = self._plan(quant), 4 * sum(value.numel() for value in self.network.state_dict().values())
        for name, bits in plan.items():
            weight = self.network.get_parameter(f"{name}.weight")
            if bits.weight != networks.FLOAT:
                total += packed_bytes(weight.numel(), bits.weight) + QPARAMS_BYTES * len(weight) - 4 * weight.numel()
            total += QPARAMS_BYTES * (bits.act != networks.FLOAT)
        inputs = (f"{name}.to_q" for name in self.products)
        return total + sum(3 * QPARAMS_BYTES for name in inputs if plan[name].act != networks.FLOAT)

    def _plan(self, quant: Quant) -> dict[str, LayerBits]:
        bits = (quant.weight_bits, quant.act_bits, quant.first_last_bits, quant.layers)
        return networks.plan_bits(self.network, list(self.layers), *bits)


def describe(model: Model) -> Description:
    """Raises UserError where the network cannot run without values: it has to be described by itself."""
    network = skeleton(model).to("meta").eval().requires_grad_(False)
    x_t, t = torch.zeros(1, *model.shape, device="meta"), torch.zeros(1, dtype=torch.int64, device="meta")
    example = x_t, t, example_condition(network)
    try:
        layers, products = _count(network, example)
        order = list(layers)
        return Description(network, layers, products, list(_blocks(network, order, layers, products, example)))
    except (RuntimeError, NotImplementedError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise UserError(f"model.network: it cannot run on shapes alone ({why}); only such networks are described") from error


@torch.inference_mode()
def _count(network: nn.Module, example: Batch) -> tuple[dict[str, int], dict[str, int]]:
    """MACs of the layers in execution order, and those of one product of each attention."""
    layers: dict[str, int] = defaultdict(int)
    products: dict[str, int] = defaultdict(int)

    def layer(name: str, module: nn.Module, _: Any, out: Tensor) -> None:
        weight: Tensor = module.weight  # type: ignore[assignment]
        layers[name] += out.numel() * weight[0].numel()

    def attention(name: str, module: Attention, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        queries = args[0] if args else kwargs["hidden_states"]
        context = kwargs.get("encoder_hidden_states")
        keys = queries if context is None else context
        products[name] += _tokens(queries) * _tokens(keys) * module.to_q.out_features

    handles = [
        module.register_forward_hook(partial(layer, name))
        for name, module in network.named_modules()
        if isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear)
    ]
    handles += [
        module.register_forward_pre_hook(partial(attention, name), with_kwargs=True)
        for name, module in networks.attentions(network)
    ]
    try:
        call(network, example)
    finally:
        for handle in handles:
            handle.remove()
    return dict(layers), dict(products)


def _tokens(x: Tensor) -> int:
    """Of [n, tokens, c], or of an image [n, c, h, w]."""
    return x.shape[1] if x.ndim == 3 else x.shape[2] * x.shape[3]


def _blocks(
    network: nn.Module,
    order: Sequence[str],
    layers: Mapping[str, int],
    products: Mapping[str, int],
    example: Batch,
) -> Iterator[Block]:
    reads = concatenations(network, example)
    for name in blocks_of(network, order):
        inside = partial(_lies_in, block=name)
        module = network.get_submodule(name)
        macs = sum(count for layer, count in layers.items() if inside(layer))
        macs += 2 * sum(count for attention, count in products.items() if inside(attention))
        own = {layer: read for layer, read in reads.items() if inside(layer)}
        yield Block(name, type(module).__name__, sum(p.numel() for p in module.parameters()), macs, own)


def _lies_in(name: str, block: str) -> bool:
    return f"{name}.".startswith(f"{block}.")
