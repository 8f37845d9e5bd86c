"""A whole network: which layers get how many bits, and the steps from float to quantized.

    adapter = Adapter(network, example)
    plan = plan_bits(network, adapter.layers, weight_bits=4, act_bits=8)
    split(network, chosen_sizes(adapter.concatenations, "skip"))  # perhaps: convolutions that are quantized in parts
    convert(network, plan, adapter.sites)             # layers and attention change class, nothing is rounded yet
    quantize_weights(network, estimator, quantize)
    observe_activations(network, batches, estimator)  # with the weights already quantized

All of it happens in place and in eval mode. A network is called `network(x_t, t)`, with named
conditions if it takes any.
"""

import fnmatch
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.quant.activations import ActivationQuantizer, Mode
from qdexp.quant.affine import QParams, dequantize, qparams_from_range
from qdexp.quant.attention import Site, quantize_attention
from qdexp.quant.blocks import Batch, call
from qdexp.quant.formats import FLOAT, ActFormat, WeightFormat, input_axis
from qdexp.quant.layers import QuantizedLayer, is_plain, kind_of, to_quantized
from qdexp.quant.ranges import RangeEstimator, estimate
from qdexp.quant.scheme import Scheme

Rounding = Callable[[Tensor, QParams, Scheme], Tensor]
"""A rounding: from a weight and its grid to codes of its shape, dtype `scheme.dtype`; nearest:
`qdexp.quant.affine.quantize`."""


@dataclass(frozen=True)
class LayerBits:
    """Bits of a layer's weight, 2 to 8, and of its input, 2 to 16; 32: left in floating point."""

    weight: int
    act: int

    def __post_init__(self) -> None:
        for option, bits, most in (("weight_bits", self.weight, 8), ("act_bits", self.act, 16)):
            if bits != FLOAT and not 2 <= bits <= most:
                raise UserError(f"{option}={bits} is not possible: use 2 to {most}, or {FLOAT} to leave values unquantized")


@torch.inference_mode()
def execution_order(network: nn.Module, example: Batch) -> list[str]:
    """Names of the layers that are or can be quantized in the order in which the network first runs them: Conv1d, Conv2d and
    Linear, and subclasses that compute the same.

    Definition order is not execution order: U-Nets may register the middle block last, and a block's attentions before its
    convolutions. Layers that do not run are left out.
    """
    order: dict[str, None] = {}
    others: set[str] = set()

    def enter(name: str, *_: Any) -> None:
        order.setdefault(name)

    def leave(name: str, layer: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], _: Any) -> None:
        if name not in others and not isinstance(layer, QuantizedLayer) and not is_plain(layer, args, kwargs):
            others.add(name)

    handles = []
    for name, module in network.named_modules():
        if kind_of(module) is not None or isinstance(module, QuantizedLayer):
            handles.append(module.register_forward_pre_hook(partial(enter, name)))
            handles.append(module.register_forward_hook(partial(leave, name), with_kwargs=True))
    try:
        call(network.eval(), example)
    finally:
        for handle in handles:
            handle.remove()
    return [name for name in order if name not in others]


def plan_bits(
    network: nn.Module,
    order: Sequence[str],
    weight_bits: int,
    act_bits: int,
    first_last_bits: int | None = 8,
    layers: Mapping[str, Mapping[str, int]] | None = None,
    first_act_bits: int | None = None,
) -> dict[str, LayerBits]:
    """The bits of every layer in `order`.

    The first layer (the first convolution, if there is one: a U-Net's time embedding runs before it) and the last get
    `first_last_bits` wherever the others are quantized; the first one's input gets `first_act_bits`, if given, wherever the
    others' are quantized. `layers` maps patterns of names (`*` and `?`) to weight_bits and
    act_bits of their own; later patterns win over earlier ones, and all over first and last. Raises UserError for a pattern
    that matches no layer.
    """
    plan = dict.fromkeys(order, LayerBits(weight_bits, act_bits))
    ends = first_and_last(network, order)
    if first_last_bits is not None:
        end = LayerBits(*(FLOAT if bits == FLOAT else first_last_bits for bits in (weight_bits, act_bits)))
        plan |= dict.fromkeys(ends, end)
    if ends and first_act_bits is not None and act_bits != FLOAT:
        plan[ends[0]] = replace(plan[ends[0]], act=first_act_bits)
    for pattern, choice in (layers or {}).items():
        names = fnmatch.filter(order, pattern)
        if not names:
            raise UserError(f"quant.layers: {pattern!r} matches no layer{_why_unmatched(network, pattern, order)}")
        if unknown := set(choice) - {"weight_bits", "act_bits"}:
            raise UserError(f"quant.layers: {pattern!r} sets {sorted(unknown)}; only weight_bits and act_bits can be set")
        for name in names:
            now = plan[name]
            plan[name] = LayerBits(choice.get("weight_bits", now.weight), choice.get("act_bits", now.act))
    return plan


def first_and_last(network: nn.Module, order: Sequence[str]) -> tuple[str, ...]:
    """The ends of layers in execution order: the first convolution, or else the first layer, and the last layer."""
    if not order:
        return ()
    return next((name for name in order if not isinstance(network.get_submodule(name), nn.Linear)), order[0]), order[-1]


def _why_unmatched(network: nn.Module, pattern: str, order: Sequence[str]) -> str:
    held = [name for name, module in network.named_modules() if name and list(module.parameters(recurse=False))]
    found = fnmatch.filter(held, pattern)
    if found:
        kind = type(network.get_submodule(found[0])).__name__
        return f" that can be quantized: {found[0]}, a {kind}, stays in full precision"
    return f"; layers are called like {order[0]!r}" if order else " that can be quantized"


def convert(
    network: nn.Module,
    plan: Mapping[str, LayerBits],
    sites: Mapping[str, Site] = MappingProxyType({}),
    *,
    weight: WeightFormat = WeightFormat(),  # noqa: B008 - frozen
    act: ActFormat = ActFormat(),  # noqa: B008 - frozen
    softmax_bits: int = 8,
) -> None:
    """Give every layer of the plan its schemes, and every product of activations in `sites` quantizers.

    A site follows a layer: it quantizes what it multiplies with the act_bits of that, where these are not 32, and softmaxes
    with `softmax_bits` (2 to 16, or 32), integers in every format. What has schemes already and stays in floating point by the
    plan keeps them: weights and activations may be converted apart.
    """
    network.eval()
    for name, bits in plan.items():
        if bits != LayerBits(FLOAT, FLOAT):
            layer = network.get_submodule(name)
            sizes = layer.parts if isinstance(layer, QuantizedLayer) else None
            to_quantized(layer, weight.scheme(bits.weight, layer, sizes), act.scheme(bits.act, input_axis(layer), sizes))
    for name, site in sites.items():
        bits = plan.get(site.layer, LayerBits(FLOAT, FLOAT))
        if bits.act != FLOAT:
            softmax = None if softmax_bits == FLOAT else Scheme(softmax_bits)
            quantize_attention(network.get_submodule(name), site.products, act.scheme(bits.act), softmax)


def split(network: nn.Module, sizes: Mapping[str, tuple[int, ...]]) -> None:
    """The convolutions named are to be quantized in parts of these numbers of input channels, see `shortcuts`."""
    for name, parts in sizes.items():
        to_quantized(network.get_submodule(name)).parts = parts


@torch.no_grad()
def quantize_weights(network: nn.Module, estimator: RangeEstimator, rounding: Rounding) -> None:
    """Round the weights of all converted layers."""
    for _, layer in quantized_layers(network):
        scheme = layer.weight_scheme
        if scheme is not None:
            weight = layer.multiplied_weight()
            qparams = qparams_from_range(*estimate(weight, scheme, estimator), scheme)
            layer.set_weight(rounding(weight, qparams, scheme), qparams)


@torch.inference_mode()
def verify_weights(network: nn.Module, example: Batch) -> None:
    """Hold what every layer computes, in a pass of `example`, against what its integers say.

    A hook of somebody else's may write the weight at each call. Raises UserError, which names the layer.
    """

    def check(name: str, layer: QuantizedLayer, args: tuple[Any, ...], found: Tensor) -> None:
        assert layer.weight_int is not None and layer.weight_qparams is not None and layer.weight_scheme is not None
        weight = dequantize(layer.weight_int, layer.weight_qparams, layer.weight_scheme).to(layer.weight.dtype)
        expected = layer.computed(args[0], weight)
        if not torch.allclose(found, expected, rtol=1e-3, atol=1e-5 * float(expected.abs().max())):
            raise UserError(f"model.network: {name} computes with other weights than those that were quantized, so something "
                            f"writes them at each call; give it weight_bits 32 in quant.layers")  # fmt: skip

    handles = [
        layer.register_forward_hook(partial(check, name), prepend=True)  # before hooks that may change the output
        for name, layer in quantized_layers(network)
        if layer.weight_scheme is not None
    ]
    try:
        call(network.eval(), example)
    finally:
        for handle in handles:
            handle.remove()


def observe_activations(network: nn.Module, batches: Iterable[Batch], estimator: RangeEstimator) -> None:
    """Fit the activation ranges to `batches` and switch activation quantization on.

    All quantizers observe the same passes, in which no activation is quantized. `batches` is iterated anew for each pass, so
    a list or a dataset will do and a generator will not.
    """
    set_activation_mode(network, "off")
    quantizers = [quantizer for _, quantizer in activation_quantizers(network) if quantizer.observed]
    observers = [quantizer.start(estimator) for quantizer in quantizers]
    for _ in range(max((observer.passes for observer in observers), default=0)):
        _run(network, batches)
        for observer in observers:
            observer.end_pass()
    for quantizer in quantizers:
        quantizer.finish()
    set_activation_mode(network, "on")


@torch.inference_mode()
def _run(network: nn.Module, batches: Iterable[Batch]) -> None:
    network.eval()
    empty = True
    for batch in batches:
        call(network, batch)
        empty = False
    if empty:
        raise ValueError("no calibration batch: activation ranges need at least one, again in every pass")


def set_activation_mode(network: nn.Module, mode: Mode) -> None:
    """Switch all activation quantizers."""
    for _, quantizer in activation_quantizers(network):
        quantizer.mode = mode


def quantized_layers(network: nn.Module) -> Iterator[tuple[str, QuantizedLayer]]:
    """Yield the name and the layer of all converted layers, in definition order."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, QuantizedLayer))


def activation_quantizers(network: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    """Yield the name and the quantizer of all activation quantizers, in definition order."""
    return ((name, module) for name, module in network.named_modules() if isinstance(module, ActivationQuantizer))
