"""Multiply-accumulates (MACs) of one pass through a network: how many there are, where, and what is multiplied.

Counted below all layers and functions, where every convolution and matrix product of torch arrives as one of a few operators,
whoever called it: layers never seen before, weights used without their layer, attention by hand. What is multiplied is known by
following tensors through views and copies: the output of an activation quantizer or of a softmax, a parameter or buffer, what
is computed of these alone. A rotation counts what a fast Hadamard transform adds up, each sign as a factor: how it is computed
here is not how kernels do. What operators that are not torch's own multiply is not known: they are listed. Runs on the meta
device too.
"""

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.multiprocessing.reductions import StorageWeakRef
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils.flop_counter import flop_registry

from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.blocks import Batch, call
from qdexp.quant.transforms import Rotation

aten = torch.ops.aten

PRODUCTS: Mapping[Any, tuple[int, int]] = {
    **dict.fromkeys((aten.mm, aten.bmm, aten.mv, aten.dot, aten.vdot), (0, 1)),
    **dict.fromkeys((aten.addmm, aten.baddbmm, aten.addmv, aten.addbmm), (1, 2)),
}
"""Matrix products, and which of their arguments are multiplied."""
COPIES = {
    *(aten.clone, aten._to_copy, aten.copy_, aten.repeat, aten.constant_pad_nd),
    *(aten.reflection_pad1d, aten.reflection_pad2d, aten.replication_pad1d, aten.replication_pad2d),
}
"""The functions that return the values that they are given, and zeros at most, which are on every grid."""
SOFTMAXES = {aten._softmax, aten._safe_softmax}
FULL = 32
"""Bits of what is not quantized."""
TORCH = {"aten", "prim", "prims"}
"""The namespaces of torch's own operators."""


@dataclass(frozen=True)
class Source:
    """The origin of a factor.

    ``names``: the parameters and buffers that it is computed from, none for a constant; or one activation quantizer.
    ``exact``: it has the very values of the one that is named. ``activation``: it depends on the network's input.
    """

    names: frozenset[str]
    exact: bool = False
    activation: bool = False

    @property
    def name(self) -> str:
        """The name of the tensor whose values it has; empty where it is computed."""
        return next(iter(self.names)) if self.exact else ""


SOFTMAX = Source(frozenset(["a softmax"]), exact=True, activation=True)


@dataclass(frozen=True)
class Product:
    """All MACs of one kind. ``module``: the innermost one that runs; ``factors``: what is multiplied, None for an activation
    that no quantizer has rounded.

    ``operator``: of an operator that is not torch's own its name; what it multiplies is not known, and no MACs are counted.
    """

    module: str
    factors: tuple[Source | None, Source | None]
    macs: int
    operator: str = ""

    @property
    def weight(self) -> Source | None:
        """The factor that does not depend on the network's input: a weight, as a rule. None in a product of two activations."""
        return next((one for one in reversed(self.factors) if one is not None and not one.activation), None)

    def bits(self, known: Mapping[str, int]) -> tuple[int, int]:
        """The bits of both factors. ``known``: those of weights and of activation quantizers by their names, and of modules
        that read what nobody has rounded, and multiply it, in other than ``FULL`` bits."""
        rest = known.get(self.module, FULL)
        first, second = (rest if one is None else known.get(one.name, rest) for one in self.factors)
        return first, second


def bit_operations(products: Sequence[Product], known: Mapping[str, int]) -> int:
    """A MAC of factors of b_1 and b_2 bits counts b_1 b_2 (BOPs). ``known``: as in ``Product.bits``."""
    return sum(product.macs * first * second for product in products for first, second in [product.bits(known)])


def macs_by_module(products: Sequence[Product]) -> Counter[str]:
    """The MACs by the innermost module that runs."""
    macs = Counter[str]()
    for product in products:
        macs[product.module] += product.macs
    return macs


@torch.no_grad()
def count(network: nn.Module, example: Batch) -> list[Product]:
    """The products of one pass, in the order in which they first happen. ``example`` has one row."""
    counter = Tracer(network)
    with counter.running():
        call(network.eval(), example)
    return counter.products


class Tracer(TorchDispatchMode):
    """Adds up MACs, and knows the sources of the tensors that are alive, by their storages."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self._network = network
        self._macs: Counter[tuple[str, tuple[Source | None, Source | None]]] = Counter()
        self._foreign: dict[tuple[str, str], None] = {}
        self._sources: dict[int, tuple[StorageWeakRef, Source]] = {}
        self._rotations = {name for name, module in network.named_modules() if isinstance(module, Rotation)}
        self.modules = [""]
        """The names of those that run, the innermost last."""
        for name, value in (*network.named_parameters(), *network.named_buffers()):
            if self.source(value) is None:  # of what has two names, the first
                self._mark(value, Source(frozenset([name]), exact=True))

    @property
    def products(self) -> list[Product]:
        """The products in the order in which they first happened."""
        own = [Product(module, factors, macs) for (module, factors), macs in self._macs.items()]
        return own + [Product(module, (None, None), 0, operator) for module, operator in self._foreign]

    @contextmanager
    def running(self) -> Iterator[None]:
        """While the network runs: which of its modules does, and what activation quantizers return."""

        def leave(name: str, module: nn.Module, args: Any, output: Any) -> None:
            self.modules.pop()
            if isinstance(module, Rotation):
                self._macs[name, (None, Source(frozenset([f"{name}.signs"]), exact=True))] += module.additions(args[0])
            if isinstance(module, ActivationQuantizer) and module.mode == "on":
                self._mark(output, Source(frozenset([name]), exact=True, activation=True))

        handles: list[Any] = []
        for name, module in self._network.named_modules():
            if name:
                handles.append(module.register_forward_pre_hook(lambda *_, name=name: self.modules.append(name), prepend=True))
                handles.append(module.register_forward_hook(partial(leave, name)))
        try:
            with sdpa_kernel(SDPBackend.MATH), self:  # fused attention hides what it multiplies
                yield
        finally:
            for handle in handles:
                handle.remove()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs, operator = kwargs or {}, getattr(func, "_overloadpacket", func)
        if isinstance(func, torch._ops.OpOverload) and func is not torch.ops.prim.device.default:
            with self:  # in inference mode what consists of other operators arrives whole
                parts = func.decompose(*args, **kwargs)
            if parts is not NotImplemented:
                return parts
        result = func(*args, **kwargs)
        if operator in PRODUCTS or operator in flop_registry:
            self._count(operator, args, kwargs, result)
        elif isinstance(func, torch._ops.OpOverload) and func.namespace not in TORCH and len(_factors((args, kwargs))) > 1:
            self._foreign[self.modules[-1], func.name()] = None
        self._follow(operator, args, kwargs, result)
        return result

    def _count(self, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        if self.modules[-1] in self._rotations:
            return
        first, second = (args[place] for place in PRODUCTS.get(operator, (0, 1)))
        if operator in PRODUCTS:
            macs = first.numel() * (second.shape[-1] if second.ndim > 1 else 1)
        else:
            macs = flop_registry[operator](*args, **kwargs, out_val=result) // 2
        self._macs[self.modules[-1], (self.source(first), self.source(second))] += macs

    def _follow(self, operator: Any, args: Any, kwargs: Any, result: Any) -> None:
        """Marks what an operator has made or changed. A view has its storage in common with what it is of."""
        given = [leaf for leaf in pytree.tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        changes = isinstance(operator, torch._ops.OpOverloadPacket) and operator.__name__.endswith("_")
        known = set() if changes else {id_of(tensor) for tensor in given}
        made = [leaf for leaf in pytree.tree_leaves(result) if isinstance(leaf, Tensor) and id_of(leaf) not in known]
        if operator in COPIES:
            source = self.source(args[1] if operator is aten.copy_ else args[0])
        elif operator in SOFTMAXES:
            source = SOFTMAX
        else:
            sources = [self.source(tensor) for tensor in given]
            fixed = [source for source in sources if source is not None and not source.activation]
            source = Source(frozenset().union(*(one.names for one in fixed))) if len(fixed) == len(given) else None
        for tensor in made:
            self._mark(tensor, source)

    def source(self, tensor: Tensor) -> Source | None:
        """The origin of a tensor; None: activations."""
        reference, source = self._sources.get(id_of(tensor), (None, None))
        return None if reference is None or reference.expired() else source

    def _mark(self, tensor: Tensor, source: Source | None) -> None:
        if source is None:
            self._sources.pop(id_of(tensor), None)
        else:
            self._sources[id_of(tensor)] = StorageWeakRef(tensor.untyped_storage()), source


def _factors(given: Any) -> list[Tensor]:
    """The tensors that an unknown operator may multiply."""
    return [leaf for leaf in pytree.tree_leaves(given) if isinstance(leaf, Tensor) and leaf.is_floating_point()]


def id_of(tensor: Tensor) -> int:
    """The identity of a tensor's storage; no other tensor gets it while a weak reference is kept."""
    identity: int = tensor.untyped_storage()._cdata
    return identity
