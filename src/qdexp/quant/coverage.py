"""Coverage of quantization: which share of a network's MACs and parameters runs quantized, at which bits, and what does not.

*Asked for* is every product that the network computes, by whatever layer or function, and every parameter that is a factor of
one, but for what ``quant`` leaves at 32 bits, and for what steps have put beside the layers: rotations, of signs and values of
16 bits, and low-rank branches, of 16 bits throughout; these count as what they are. Norms, biases, embeddings and what else is
never a factor of a matrix product or convolution is not asked for; it is listed all the same.
"""

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from torch import nn

from qdexp.errors import UserError
from qdexp.quant.attention import QuantizedSite, Site
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.low_rank import LowRank
from qdexp.quant.macs import FULL, Product, bit_operations
from qdexp.quant.network import LayerBits, activation_quantizers, quantized_layers
from qdexp.quant.transforms import Rotation

ENOUGH = 0.95
"""The share of what the bits ask for below which one line warns."""
NAMES = 3
"""Names that are told of each kind."""
UNSEEN = "operator"
"""The beginning of the kind of products that nobody sees."""
UNTOUCHED = LayerBits(FULL, FULL)
BESIDE = (Rotation, LowRank)
"""The kinds of products beside the layers' own."""
HALF = 16
"""Bits of what that reads, as kernels hold it."""


@dataclass(frozen=True)
class Wanted:
    """The bits that are asked for: of the layers in ``plan``, of the softmax, and of all that is in no plan. ``sites``: which
    layer a product of two activations follows."""

    plan: Mapping[str, LayerBits]
    sites: Mapping[str, Site]
    rest: LayerBits
    softmax: int

    def of(self, product: Product) -> LayerBits:
        """The bits of a product's factors; a product of two activations has their ``act``."""
        if product.weight is not None:
            return self.plan.get(_layer(product.weight.name), self.rest)
        site = self.sites.get(product.module)
        return LayerBits(FULL, self.rest.act if site is None else self.plan.get(site.layer, self.rest).act)

    def met(self, product: Product, known: Mapping[str, int]) -> bool:
        """Whether all factors are quantized that ought to be."""
        asked, (first, second) = self.of(product), _bits(product, known)
        if product.weight is not None:
            return (asked.weight == FULL or first != FULL) and (asked.act == FULL or second != FULL)
        full = (first == FULL) + (second == FULL)
        return asked.act == FULL or full == 0 or (full == 1 and self.softmax == FULL)


@dataclass
class Kind:
    """Parameters and MACs of one kind that stay in full precision."""

    names: dict[str, None] = field(default_factory=dict)
    parameters: int = 0
    macs: int = 0

    def __str__(self) -> str:
        names = list(self.names)
        return ", ".join(names[:NAMES]) + (f" and {len(names) - NAMES} more" if len(names) > NAMES else "")


class Coverage:
    """Coverage of a converted ``network`` whose ``products`` were counted.

    ``known``: the bits of its quantized weights and of its activation quantizers, as ``known_bits`` gives them. ``macs`` and
    ``parameters`` are by bits: ``w4a8``, ``a8a8`` (products of two activations), ``full``. ``asked``: those of either that are
    asked for; ``quantized``: those of these that are. ``weights``: parameters that are factors, and in full precision.
    """

    def __init__(self, network: nn.Module, products: Sequence[Product], known: Mapping[str, int], wanted: Wanted) -> None:
        self._network, self._known, self._wanted = network, known, wanted
        self._sizes = {name: value.numel() for name, value in network.named_parameters()}
        self._sizes |= {f"{name}.weight": layer.weight.numel() for name, layer in quantized_layers(network)}
        self.macs, self.parameters = Counter[str](), Counter[str]()
        self.asked, self.quantized = Counter[str](macs=0, parameters=0), Counter[str](macs=0, parameters=0)
        self.bit_operations = bit_operations(products, known)
        self._kinds: dict[str, Kind] = {}
        self._told = set[str]()
        factors, asked = set[str](), set[str]()
        for product in products:
            if product.operator:
                self._leave_out(*_kind(network, product))
                continue
            names = self._factors(product)
            factors |= names
            asked |= names if wanted.of(product).weight != FULL else set()
            self._add_product(product, names)
        for name, size in self._sizes.items():
            self.parameters[self._label(name)] += size
            if self._is_full(name) and name not in self._told:
                self._leave_out(*_owner(network, name, name in factors), parameters=size)
        self.asked["parameters"] = self._size(asked)
        self.quantized["parameters"] = self._size({name for name in asked if not self._is_full(name)})
        self.weights = self._size({name for name in factors if self._is_full(name)})

    @property
    def left_out(self) -> dict[str, Kind]:
        """The parts that stay in full precision by their kind, those with the most MACs first."""
        return dict(sorted(self._kinds.items(), key=lambda item: (-item[1].macs, -item[1].parameters, item[0])))

    def share(self, what: str) -> float:
        """The quantized share of the ``macs`` or ``parameters`` that are asked for."""
        return self.quantized[what] / self.asked[what] if self.asked[what] else 1.0

    def require_any(self, label: str) -> None:
        """Raises UserError where nothing at all is quantized, though the bits, ``label``, ask for it."""
        if not self.quantized["macs"]:
            raise UserError(f"model.network: nothing of it would be quantized at {label}, all stays in full precision "
                            f"({self._shortly()}); give quantizer=none")  # fmt: skip

    def warning(self, label: str) -> str | None:
        """One line, where much less is quantized than the bits, ``label``, say."""
        shares = {"MACs": self.share("macs"), "parameters": self.share("parameters")}
        low = " and ".join(f"{share:.1%} of the {what}" for what, share in shares.items() if share < ENOUGH)
        unseen = "; ".join(f"{kind}: {found}" for kind, found in self.left_out.items() if kind.startswith(UNSEEN))
        told = [f"of what {label} asks for, only {low} are quantized; left out: {self._shortly()}"] if low else []
        return (
            "; ".join([*told, f"operators that are not torch's own stay in full precision: {unseen}"] if unseen else told)
            or None
        )

    def _shortly(self) -> str:
        return "; ".join(f"{kind}: {found}" for kind, found in self.left_out.items() if found.macs) or "it multiplies nothing"

    def content(self) -> dict[str, Any]:
        """The coverage as JSON. Shares are of all MACs and all parameters; ``quantized`` is of those asked for."""
        totals = {"macs": self.macs.total(), "parameters": self.parameters.total()}
        left_out = [
            {"kind": kind, "count": len(found.names), "parameters": found.parameters, "macs": found.macs,
             "names": list(found.names)[:NAMES]}
            for kind, found in self.left_out.items()
        ]  # fmt: skip
        return {
            "macs": _shares(self.macs),
            "parameters": _shares(self.parameters),
            "asked": {what: self.asked[what] / max(total, 1) for what, total in totals.items()},
            "quantized": {what: self.share(what) for what in totals},
            "left_out": left_out,
            "total": totals,
            "weights_left_out": self.weights,
            "bit_operations": self.bit_operations,
        }

    def _factors(self, product: Product) -> set[str]:
        """The parameters that a product multiplies, or computes what it multiplies from."""
        return set() if product.weight is None else {name for name in product.weight.names if name in self._sizes}

    def _is_full(self, name: str) -> bool:
        return self._known.get(name, FULL) == FULL

    def _size(self, names: set[str]) -> int:
        return sum(self._sizes[name] for name in names)

    def _label(self, name: str) -> str:
        """The bits of a parameter, which are those of its layer."""
        act = self._known.get(f"{_layer(name)}.input_quantizer", FULL)
        return "full" if self._is_full(name) else f"w{self._known[name]}a{act}"

    def _add_product(self, product: Product, names: set[str]) -> None:
        beside = isinstance(self._network.get_submodule(product.module), BESIDE)
        bits, asked = _bits(product, self._known), UNTOUCHED if beside else self._wanted.of(product)
        kinds = "aa" if product.weight is None else "wa"
        label = "full" if bits == (FULL, FULL) else "".join(f"{kind}{one}" for kind, one in zip(kinds, bits, strict=True))
        self.macs[label] += product.macs
        met = beside or self._wanted.met(product, self._known)
        if asked != UNTOUCHED:
            self.asked["macs"] += product.macs
            self.quantized["macs"] += product.macs if met else 0
        if not met or label == "full":
            left = {name for name in names if self._is_full(name)} - self._told
            self._told |= left
            kind, name = _kind(self._network, product)
            remark = "by quant" if met else "" if label == "full" else f"only {label}"
            self._leave_out(", ".join(filter(None, (kind, remark))), name, product.macs, self._size(left))

    def _leave_out(self, kind: str, name: str, macs: int = 0, parameters: int = 0) -> None:
        found = self._kinds.setdefault(kind, Kind())
        found.names[name] = None
        found.macs += macs
        found.parameters += parameters


def known_bits(network: nn.Module) -> dict[str, int]:
    """The bits of the weights and activation quantizers of a converted network, by name, and of what stands beside its
    layers."""
    known = {f"{name}.weight": layer.weight_scheme.bits for name, layer in quantized_layers(network) if layer.weight_scheme}
    known |= {name: quantizer.scheme.bits for name, quantizer in activation_quantizers(network)}
    for name, module in network.named_modules():
        if isinstance(module, BESIDE):
            known |= {name: HALF, f"{name}.signs": 1} if isinstance(module, Rotation) else {name: HALF}
    return known


def _bits(product: Product, known: Mapping[str, int]) -> tuple[int, int]:
    """The bits of both factors, those of the weight first, if there is one."""
    first, second = product.bits(known)
    return (second, first) if product.weight is not None and product.weight is product.factors[1] else (first, second)


def _shares(counts: Counter[str]) -> dict[str, float]:
    return {label: count / counts.total() for label, count in counts.most_common()}


def _layer(name: str) -> str:
    """The layer whose weight has this name."""
    return name.removesuffix(".weight")


def _class(network: nn.Module, name: str) -> str:
    """The class of a module, as it was before it was quantized."""
    module = network.get_submodule(name)
    kind = type(module).__name__
    return kind.removeprefix("Quantized") if isinstance(module, QuantizedLayer | QuantizedSite) else kind


def _kind(network: nn.Module, product: Product) -> tuple[str, str]:
    """The kind of a product in full precision, and a name for it."""
    weight, runs = product.weight, _class(network, product.module)
    if product.operator:
        return f"{UNSEEN} {product.operator}", product.module or runs
    if weight is None:
        return "products of two activations", product.module or runs
    if not weight.names:
        return "products with constants", product.module or runs
    if not weight.exact:
        return f"{runs}, a weight computed at each call", product.module or runs
    owner = weight.name.rpartition(".")[0]
    if owner == product.module:
        return runs, owner or weight.name
    return f"{_class(network, owner)}, its weight used outside of it", owner or weight.name


def _owner(network: nn.Module, name: str, multiplied: bool) -> tuple[str, str]:
    """The kind of a parameter in full precision that belongs to no counted product, and a name for it."""
    owner, _, own = name.rpartition(".")
    kind, module = _class(network, owner), network.get_submodule(owner)
    if own == "bias" and "Norm" not in kind:
        return "biases", name
    if multiplied:  # in full precision though its product is not
        return f"weights of {kind}, by quant", owner
    if own == "weight" and isinstance(module, nn.Conv1d | nn.Conv2d | nn.Linear):
        return f"{kind}, not run", owner
    return (kind, owner) if owner and not list(module.children()) else ("parameters outside layers", name)
