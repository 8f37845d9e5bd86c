"""Attention: products of two activations, quantized wherever a network computes them.

    scores = s Q K^T + mask,  P = softmax(scores),  y = P V

Who computes them is found by tracing: a *site* is the innermost module in whose forward two activations are multiplied, by
torch's fused attention (in which P never exists: here it does), or by matrix products by hand, with a softmax between them or,
in linear attention, without. A site changes class, as layers do; its forward runs under a function mode, which hands each of
these products to quantizers of its own. Nothing depends on the names or classes of anybody's modules.
"""

from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import cache, wraps
from types import FunctionType
from typing import Any

import torch
import torch.nn.functional as F
from torch import nn
from torch.overrides import TorchFunctionMode

from qdexp.errors import UserError
from qdexp.quant.blocks import Batch, call, with_another
from qdexp.quant.handing import Unpickled
from qdexp.quant.macs import SOFTMAX, Tracer
from qdexp.quant.products import (
    ACT,
    ATTENTION,
    FUSED,
    PROBABILITY,
    PRODUCTS,
    Product,
    QuantizedAttention,
    QuantizedProduct,
    factors_of,
)
from qdexp.quant.scheme import Scheme

CHILD = "quantized_products"
"""The name of a site's submodule for the quantizers of its products."""


def _open(function: Any) -> FunctionType:
    """A function of torch that asks whether a function mode is active, and then leaves all of its work to that: a copy that
    does not ask, so that the mode sees what it calls."""
    names = function.__globals__ | {"has_torch_function": lambda _: False}
    opened = FunctionType(function.__code__, names, function.__name__, function.__defaults__, function.__closure__)
    opened.__kwdefaults__ = function.__kwdefaults__
    return opened


OPENED: Mapping[Any, Any] = {F.multi_head_attention_forward: _open(F.multi_head_attention_forward)}


@dataclass(frozen=True)
class Site:
    """A module that multiplies activations. ``products``: what its forward multiplies, in this order; ``layer``: that whose
    activation bits it follows, the first one in it, or else the last one before it."""

    products: tuple[Product, ...]
    layer: str


def attention_sites(network: nn.Module, example: Batch, layers: Sequence[str]) -> dict[str, Site]:
    """The sites of a network by their names, in the order in which they first run.

    Left out are modules whose calls multiply differently, those in which another site lies, and those on which somebody has
    set another forward.

    Args:
        network: In full precision.
        example: One row; may be on the meta device.
        layers: The names of the layers that can be quantized.
    """
    tracer = Tracer(network)
    looker = _Looker(tracer)
    with ExitStack() as stack:
        for name, module in network.named_modules():
            for handle in looker.watch(name, module, name in layers):
                stack.callback(handle.remove)
        with torch.no_grad(), tracer.running(), looker:
            for batch in (example, with_another(example)):  # a loop over rows multiplies as often as there are rows
                call(network.eval(), batch)
    same = {name: calls[0] for name, calls in looker.calls.items() if len(set(calls)) == 1 and any(calls[0])}
    found = {name: products for name, products in same.items() if "forward" not in vars(network.get_submodule(name))}
    inner = {name for name in found if any(other != name and _lies_in(other, name) for other in found)}
    return {name: Site(products, looker.layer[name]) for name, products in found.items() if name not in inner}


class _Opening(TorchFunctionMode):
    """Passes each product that torch's functions compute to ``multiply``."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func in PRODUCTS:
            return self.multiply(func, args, kwargs)
        if func in OPENED:
            with self:
                return OPENED[func](*args, **kwargs)
        return func(*args, **kwargs)

    def multiply(self, func: Any, args: Any, kwargs: Any) -> Any:
        raise NotImplementedError


class _Looker(_Opening):
    """Writes down what the modules that run multiply."""

    def __init__(self, tracer: Tracer) -> None:
        super().__init__()
        self.tracer = tracer
        self.calls: dict[str, list[tuple[Product, ...]]] = defaultdict(list)
        """The products of each call, by module."""
        self.layer: dict[str, str] = {}
        self._running: list[tuple[str, list[Product], int]] = []
        self._ran: list[str] = []

    def watch(self, name: str, module: nn.Module, is_layer: bool) -> Sequence[Any]:
        """Hooks of one module."""

        def enter(*_: Any) -> None:
            if is_layer:
                self._ran.append(name)
            self._running.append((name, [], len(self._ran)))

        def leave(*_: Any) -> None:
            products = self._running.pop()[1]
            if products:
                self.calls[name].append(tuple(products))

        return module.register_forward_pre_hook(enter), module.register_forward_hook(leave)

    def multiply(self, func: Any, args: Any, kwargs: Any) -> Any:
        kinds = self._kinds(func, args, kwargs)
        for _, outer, _ in self._running[:-1]:
            outer.append(())
        site, products, before = self._running[-1]
        products.append(kinds)
        if kinds:
            self.layer.setdefault(site, self._ran[min(before, len(self._ran) - 1)])
        return func(*args, **kwargs)

    def _kinds(self, func: Any, args: Any, kwargs: Any) -> Product:
        factors = factors_of(func, args, kwargs)
        sources = [self.tracer.source(one) for one in factors]
        if len(factors) != 2 or not self._ran or any(source is not None and not source.activation for source in sources):
            return ()
        return ATTENTION if func is FUSED else tuple(PROBABILITY if source is SOFTMAX else ACT for source in sources)


class _Multiplying(_Opening):
    """One call of a site."""

    def __init__(self, site: "QuantizedSite") -> None:
        super().__init__()
        self.site, self.done = site, 0

    def multiply(self, func: Any, args: Any, kwargs: Any) -> Any:
        self.site.require(self.done < len(self.site.products))
        product, quantizers = self.site.products[self.done], self.site.quantized_products[self.done]
        self.done += 1
        if not product:
            return func(*args, **kwargs)
        self.site.require((func is FUSED) == (product == ATTENTION))
        return quantizers.multiply(func, args, kwargs)  # type: ignore[operator]


class QuantizedSite(Unpickled):
    """The attributes that every site has beside its own class: ``products``, and a module with the quantizers of each."""

    products: tuple[Product, ...]
    quantized_products: nn.ModuleList

    def quantizers(self) -> Iterator[tuple[str, nn.Module]]:
        """The kind of each factor of a product, ``ACT`` or ``PROBABILITY``, and its quantizer, or identity."""
        for product, own in zip(self.products, self.quantized_products, strict=True):
            yield from zip((ACT, ACT, ACT, PROBABILITY) if product == ATTENTION else product, own.children(), strict=True)

    @property
    def quantized_as(self) -> str:
        """The quantization of the site in words, e.g. ``A8, softmax 8 bits``: the bits of the factors, and when the grids of
        activations hold, where that is not always."""
        schemes: dict[str, Scheme | None] = {kind: getattr(one, "scheme", None) for kind, one in self.quantizers()}
        bits = {kind: scheme.bits if scheme else 32 for kind, scheme in schemes.items()}
        told = [text.format(bits[kind]) for kind, text in ((ACT, "A{}"), (PROBABILITY, "softmax {} bits")) if kind in bits]
        act = schemes.get(ACT)
        return ", ".join([*told, *(act.timing if act else ())])

    def extra_repr(self) -> str:
        """The text that `print(network)` shows: that of its own class, and how it is quantized."""
        return ", ".join(filter(None, (super().extra_repr(), self.quantized_as)))

    def require(self, ok: bool) -> None:
        """Raises UserError where a call does not multiply what the traced one did."""
        if not ok:
            raise UserError(f"model.network: the attention in {type(self).__name__} does not multiply the same tensors at each "
                            f"call; give its layers act_bits 32 in quant.layers")  # fmt: skip


@cache
def _quantized_class(own: type[nn.Module]) -> type[QuantizedSite]:
    """The class of quantized sites whose own class is `own`; it stays a subclass of it, whose forward has the same
    signature."""

    original = own.forward  # looked up here: a compiler does not look up what a class has

    @wraps(original)
    def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
        mode = _Multiplying(self)
        with mode:
            result = original(self, *args, **kwargs)
        self.require(mode.done == len(self.products))
        return result

    return type(f"Quantized{own.__name__}", (QuantizedSite, own), {"forward": forward})


def quantize_attention(
    module: nn.Module, products: Sequence[Product], act: Scheme | None, softmax: Scheme | None, known: bool = True
) -> QuantizedSite:
    """Make a module quantize the products of its forward from now on, its quantizers off.

    Args:
        module: The object itself changes class; all that it has stays.
        products: Those of its site.
        act: The grid of activations; None: they stay as they are.
        softmax: The grid of softmaxes.
        known: The latter lies on [0, 1]; else it is found, or set, like all others.
    """
    device = next((value.device for value in (*module.parameters(), *module.buffers())), torch.device("cpu"))

    def quantizers(product: Product) -> nn.Module:
        if product == ATTENTION:
            return QuantizedAttention(act, softmax, known)
        return QuantizedProduct(product, act, softmax, known) if product else nn.Module()

    site: Any = module
    if not isinstance(module, QuantizedSite):
        own: Any = type(module)
        site.__class__ = _quantized_class(own)
    site.products = tuple(map(tuple, products))
    site.quantized_products = nn.ModuleList(map(quantizers, site.products)).to(device)
    result: QuantizedSite = site
    return result


def quantized_sites(network: nn.Module) -> dict[str, QuantizedSite]:
    """The attention sites whose products are quantized, by name, in definition order."""
    return {name: module for name, module in network.named_modules() if isinstance(module, QuantizedSite)}


def site_of(quantizer: str) -> str | None:
    """The name of the site to which the activation quantizer of this name belongs; None: to a layer."""
    site, inside, _ = f".{quantizer}".partition(f".{CHILD}.")
    return site.removeprefix(".") if inside else None


def _lies_in(name: str, outer: str) -> bool:
    return not outer or name.startswith(f"{outer}.")
