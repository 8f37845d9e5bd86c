"""Quantized layers.

    y = layer(Q_a(T x); dequantize(w_int), b) [+ branch(T x)],    layer: Conv1d, Conv2d or Linear of torch

T are the layer's transforms, none as a rule, see `transforms`; a branch, see `low_rank`, is there or not; Q_a rounds the input,
see `activations`. b stays in floating point. The dequantized weight is computed once and kept, so a call costs one rounding of
the input. It is all that `state_dict()` has of quantization, see `handing`; what qdexp saves is packed, see `packed`.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from typing import Any, ClassVar, cast

import torch
from torch import Tensor, nn

from qdexp.quant.activations import quantizer_or_identity
from qdexp.quant.affine import QParams, dequantize
from qdexp.quant.handing import WithIntegers
from qdexp.quant.low_rank import LowRank
from qdexp.quant.scheme import Scheme
from qdexp.quant.transforms import Smoothing, Transform


class QuantizedLayer(WithIntegers):
    """The attributes that every quantized layer has beside its torch class.

    `weight` is the float parameter until `set_weight` replaces it by a buffer with the dequantized values, which lie in the
    coordinates of the `transforms` and lack the `branch`; `weight_int` and `weight_qparams` are None until then, and for ever
    where `weight_scheme` is None.
    """

    kind: ClassVar[type[nn.Module]]
    """The class of torch whose arithmetic it is."""
    weight_scale: Tensor | None
    weight_zero_point: Tensor | None
    weight_scheme: Scheme | None
    input_quantizer: nn.Module
    parts: tuple[int, ...] | None
    """The numbers of input channels that are quantized apart; None: all are as one."""
    transforms: nn.ModuleList
    """The transforms of the input before it is rounded, one after another."""
    branch: LowRank | None

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """The layer of torch, applied to the quantized input; what else a subclass takes changes nothing, see `is_plain`."""
        return self.computed(input, self.multiplied_weight())

    def computed(self, input: Tensor, weight: Tensor) -> Tensor:
        """The layer's output with another weight in the place of `multiplied_weight()`."""
        x = self.transformed(input)
        y = arithmetic(self.kind, self, self.input_quantizer(x), weight)
        return y if self.branch is None else y + self.branch(x, self)

    def transformed(self, input: Tensor) -> Tensor:
        """An input in the coordinates of the transforms."""
        for transform in self.transforms:
            input = transform(input)
        return input

    def quantized_input(self, input: Tensor) -> Tensor:
        """The input that the weight multiplies."""
        x: Tensor = self.input_quantizer(self.transformed(input))
        return x

    def multiplied_weight(self) -> Tensor:
        """The weight that meets the quantized input."""
        if self.weight_int is not None or not self.changed:
            return self.weight
        return self.own_weight(self.weight).to(self.weight.dtype)

    @property
    def channel_dim(self) -> int:
        """The dimension of an input along which its channels lie."""
        return -1 if isinstance(self, nn.Linear) else 1

    @property
    def changed(self) -> bool:
        """Whether it has transforms or a branch."""
        return len(self.transforms) > 0 or self.branch is not None

    def transformed_weight(self, original: Tensor) -> Tensor:
        """The full-precision weight in the coordinates of the transforms."""
        for transform in self._transforms:
            original = transform.weight(original)
        return original

    def own_weight(self, original: Tensor) -> Tensor:
        """The full-precision weight in the layer's coordinates, without what the branch computes: the target of rounding."""
        weight = self.transformed_weight(original)
        return weight if self.branch is None else weight - self.branch.product()

    def effective_weight(self) -> Tensor:
        """The weight of a plain layer that computes the same from inputs that are not quantized."""
        if self.weight_int is None or not self.changed:
            return self.weight
        weight = self.weight if self.branch is None else self.weight + self.branch.product()
        for transform in reversed(self._transforms):
            weight = transform.restore(weight)
        return weight.to(self.weight.dtype)

    @property
    def _transforms(self) -> list[Transform]:
        return list(cast("Sequence[Transform]", self.transforms))

    @property
    def weight_qparams(self) -> QParams | None:
        """The grid of the weight, [groups] each."""
        if self.weight_scale is None or self.weight_zero_point is None:
            return None
        return QParams(self.weight_scale, self.weight_zero_point)

    @torch.no_grad()
    def set_weight(self, integers: Tensor, qparams: QParams) -> None:
        """Compute with these integers from now on; dtype, device and strides of the float weight are kept."""
        assert self.weight_scheme is not None
        weight = torch.empty_like(self.weight).copy_(dequantize(integers, qparams, self.weight_scheme))
        del self.weight
        self.register_buffer("weight", weight)
        self.weight_int = integers
        self.weight_scale, self.weight_zero_point = qparams

    @property
    def quantized_as(self) -> str:
        """The quantization of the layer in words, e.g. ``W4A8, per channel, parts 48+48``: the bits of weight and input, the
        groups of the weight (or else of the input) that have a grid each, when the input's grid holds, where that is not
        always, and the transforms and branches."""
        weight, act = self.weight_scheme, getattr(self.input_quantizer, "scheme", None)
        bits = "".join(f"{kind}{scheme.bits if scheme else 32}" for kind, scheme in (("W", weight), ("A", act)))
        one, other = (weight, act) if weight else (act, None)
        before = ["smoothed" if isinstance(transform, Smoothing) else "rotated" for transform in self.transforms]
        beside = [] if self.branch is None else [f"rank {self.branch.rank} beside it"]
        return ", ".join([bits, *(one.traits if one else ()), *(other.timing if other else ()), *before, *beside])

    def extra_repr(self) -> str:
        """The text that `print(layer)` shows: torch's, and how the layer is quantized."""
        return f"{super().extra_repr()}, {self.quantized_as}"


class QuantizedConv1d(QuantizedLayer, nn.Conv1d):
    """A quantized `torch.nn.Conv1d`."""

    kind = nn.Conv1d


class QuantizedConv2d(QuantizedLayer, nn.Conv2d):
    """A quantized `torch.nn.Conv2d`."""

    kind = nn.Conv2d


class QuantizedLinear(QuantizedLayer, nn.Linear):
    """A quantized `torch.nn.Linear`."""

    kind = nn.Linear


QUANTIZED: dict[type[nn.Module], type[QuantizedLayer]] = {
    nn.Conv1d: QuantizedConv1d,
    nn.Conv2d: QuantizedConv2d,
    nn.Linear: QuantizedLinear,
}
_METHODS = ("forward", "_conv_forward")
"""The methods in which the arithmetic of a layer is written, in its class or, where somebody has replaced it, on the object
itself."""


def arithmetic(kind: Any, layer: Any, x: Tensor, weight: Tensor, *, biased: bool = True) -> Tensor:
    """Compute a layer with another input and weight.

    Args:
        kind: Torch's class of the layer: Linear, Conv1d or Conv2d.
        layer: The layer, whose options and bias are used.
        x: The input.
        weight: The weight, of the shape of the layer's.
        biased: Whether the bias is added.

    Returns:
        The output.
    """
    bias = layer.bias if biased else None
    if kind is nn.Linear:
        return nn.functional.linear(x, weight, bias)
    y: Tensor = kind._conv_forward(layer, x, weight, bias)
    return y


def kind_of(layer: nn.Module) -> type[nn.Module] | None:
    """The class of torch whose arithmetic a layer may have; None where it is of no such class, or its weight is no parameter of
    floating point numbers: then it is computed at each call, or quantized already."""
    weight = layer._parameters.get("weight")
    if weight is None or not weight.is_floating_point() or isinstance(layer, QuantizedLayer):
        return None
    return next((kind for kind in QUANTIZED if isinstance(layer, kind)), None)


def is_whole(layer: nn.Module) -> bool:
    """Whether each output of a layer reads all channels of the input: not so in a convolution of several groups."""
    return getattr(layer, "groups", 1) == 1


def is_plain(layer: nn.Module, args: Sequence[Any], kwargs: Mapping[str, Any]) -> bool:
    """Whether a layer for which there is a `kind_of` computes, from the arguments of this call, what that class computes.

    So it does where nothing is overridden; else both are computed and compared, on the meta device with random numbers.
    """
    kind = kind_of(layer)
    if kind is None:
        return False
    if not any(name in vars(layer) or getattr(type(layer), name, None) is not getattr(kind, name, None) for name in _METHODS):
        return True
    if not (args and isinstance(args[0], Tensor)):
        return False
    x, tried = (args[0], cast(Any, layer)) if not args[0].is_meta else _drawn(args[0], layer)
    try:
        found, expected = tried.forward(x, *args[1:], **kwargs), arithmetic(kind, tried, x, tried.weight)
    except Exception:
        return False
    return isinstance(found, Tensor) and found.shape == expected.shape and torch.allclose(found, expected, rtol=1e-4, atol=1e-5)


def _drawn(x: Tensor, layer: nn.Module) -> tuple[Tensor, Any]:
    """An input and a copy of the layer on the CPU, with random numbers."""
    drawn = deepcopy(layer).to_empty(device="cpu")
    with torch.random.fork_rng(devices=[]):
        for value in (*drawn.parameters(), *drawn.buffers()):
            if value.is_floating_point():
                nn.init.normal_(value)
        return torch.randn(x.shape), drawn


_subclasses: dict[type[nn.Module], type[QuantizedLayer]] = {}


def _quantized_class(own: type[nn.Module], kind: type[nn.Module]) -> type[QuantizedLayer]:
    """The class of quantized layers whose own class is `own`, which is `kind` or a subclass and stays their base."""
    if own is kind:
        return QUANTIZED[kind]
    if own not in _subclasses:
        _subclasses[own] = type(f"Quantized{own.__name__}", (QUANTIZED[kind], own), {})
    return _subclasses[own]


def to_quantized(layer: nn.Module, weight: Scheme | None = None, act: Scheme | None = None) -> QuantizedLayer:
    """Turn a Conv1d, Conv2d or Linear into its quantized class, weight still float and input quantizer off; one that is
    quantized already gets the schemes that are given here.

    The object itself changes class, as in torch's parametrizations: options, hooks, memory format and identity stay. Subclasses
    are taken for what they extend: it is for the caller to know that they compute the same, see `is_plain`.
    """
    if isinstance(layer, QuantizedLayer):
        layer.weight_scheme = weight or layer.weight_scheme
        if act is not None:
            layer.input_quantizer = quantizer_or_identity(act).to(layer.weight.device)
        return layer
    kind = kind_of(layer)
    if kind is None:
        raise TypeError(f"{type(layer).__name__} is no layer that can be quantized")
    if weight is not None and weight.time != "static":
        raise ValueError("the grid of a weight is static")
    quantized: Any = layer
    for name in _METHODS:
        vars(layer).pop(name, None)
    quantized.__class__ = _quantized_class(type(layer), kind)
    quantized.weight_scheme, quantized.parts = weight, None
    quantized.transforms, quantized.branch = nn.ModuleList(), None
    quantized.input_quantizer = quantizer_or_identity(act).to(quantized.weight.device)
    for name in ("weight_int", "weight_scale", "weight_zero_point"):
        quantized.register_buffer(name, None, persistent=False)
    result: QuantizedLayer = quantized
    return result
