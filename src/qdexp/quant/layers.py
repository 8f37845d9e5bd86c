"""Quantized layers.

    y = layer(Q_a(T x); dequantize(w_int), b) [+ branch(T x)],    layer: Conv1d, Conv2d or Linear of torch

T are the layer's transforms, none as a rule, see `transforms`; a branch, see `low_rank`, is there or not. Q_a has one grid for
the tensor or for each part of a concatenation: always, in a group of timesteps, or at the call. b stays in floating point. The
dequantized weight is computed once and kept, so a call costs one rounding of the input. It is all that `state_dict()` has of
quantization, see `handing`; what qdexp saves is packed, see `packed`.
"""

from collections.abc import Mapping, Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar, Literal, cast

import torch
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.quant.affine import (
    QParams,
    dequantize,
    fake_quantize,
    fake_quantize_learned,
    qparams_from_range,
)
from qdexp.quant.context import CallContext, spread
from qdexp.quant.dynamic import by_row, quantize_dynamic
from qdexp.quant.granularity import whole
from qdexp.quant.handing import Exact, WithIntegers
from qdexp.quant.low_rank import LowRank
from qdexp.quant.ranges import GroupedObserver, Observer, RangeEstimator
from qdexp.quant.scheme import PerTensor, Scheme, Time, TimeGroups
from qdexp.quant.transforms import Smoothing, Transform

Mode = Literal["off", "observe", "on"]


class ActivationQuantizer(Exact):
    """Rounds what passes through to the grid of `scheme`.

    `mode` is "off" (values pass untouched: the start), "observe" (they pass, and are shown to the observer) or "on".
    With `fixed_range` the grid is known beforehand, static and never observed.

    Scale and zero point are [groups]; with groups of timesteps [time groups, groups], and each row of the input, or each of the
    equal runs of its first dimension that belong to one row of the network's call, is rounded to the grid of its timestep. A
    dynamic grid has none to keep, see `dynamic`.
    """

    _exact = ("scale", "zero_point")
    scale: Tensor
    zero_point: Tensor
    mode: Mode
    observer: Observer | GroupedObserver | None
    context: CallContext | None
    """Where the timestep is read, see `context.share`; None where it does not matter."""

    def __init__(self, scheme: Scheme, fixed_range: tuple[float, float] | None = None) -> None:
        super().__init__()
        self.scheme = scheme
        self.fixed = fixed_range is not None
        self.groups = by_row(scheme).granularity.groups(())  # no shape is known here, and none of these needs one
        lo, hi = (torch.full((sum(self.groups),), end) for end in fixed_range or (0.0, 0.0))
        qparams = qparams_from_range(lo, hi, scheme)
        self.register_buffer("scale", qparams.scale, persistent=False)
        self.register_buffer("zero_point", qparams.zero_point, persistent=False)
        self.set_time("static" if self.fixed else scheme.time)

    def set_time(self, time: Time) -> None:
        """Let the grid be of another kind, off until it is found. `context.share` is up to the caller."""
        if time != "dynamic" and not isinstance(whole(self.scheme.granularity), PerTensor):
            raise UserError(
                f"the grids of activations with {self.scheme.granularity} are computed at the call: give quant.act.time=dynamic"
            )
        self.scheme = replace(self.scheme, time=time)
        own = (0,) if time == "dynamic" else (sum(self.groups),)
        shape = (len(time), *own) if isinstance(time, TimeGroups) else own
        if self.scale.shape != shape:
            self.scale, self.zero_point = self.scale.new_ones(shape), self.zero_point.new_zeros(shape)
        self.context = CallContext() if isinstance(time, TimeGroups) else None
        self.observer, self.mode = None, "off"

    @property
    def observed(self) -> bool:
        """Whether its grid is found by observation and kept."""
        return not self.fixed and self.scheme.time != "dynamic"

    def forward(self, x: Tensor) -> Tensor:
        """x, any shape -> the same shape, dtype and strides."""
        if self.mode == "on" and self.scheme.time == "dynamic":
            return quantize_dynamic(x, self.scheme)
        if self.mode == "on":
            qparams = self._qparams(x)
            learning = self.scale.requires_grad or x.requires_grad  # what was quantized before may be learned through this one
            quantize = fake_quantize_learned if learning else fake_quantize
            return quantize(x, qparams, self.scheme)
        if self.mode == "observe":
            if isinstance(self.observer, GroupedObserver):
                self.observer.observe(x, self._time_groups(x))
            elif self.observer is not None:
                self.observer.observe(x)
        return x

    def _qparams(self, x: Tensor) -> QParams:
        """Of the grids that are kept that of this call: [groups] where all rows have the same one, else [len(x), groups]."""
        if self.scheme.time == "static":
            return QParams(self.scale, self.zero_point)
        index = self._time_groups(x)
        found = QParams(self.scale[index], self.zero_point[index])
        return QParams(found.scale[0], found.zero_point[0]) if len(index) == 1 else found

    def _time_groups(self, x: Tensor) -> Tensor:
        """The group of timesteps of each index along the first dimension of x, int64 [len(x)]; [1] where all have the same."""
        assert self.context is not None and isinstance(self.scheme.time, TimeGroups)
        index = self.context.groups(self.scheme.time)
        return index if len(index) == 1 else spread(index, x)

    def start(self, estimator: RangeEstimator) -> Observer | GroupedObserver:
        """Begin to observe."""
        if isinstance(self.scheme.time, TimeGroups):
            observers = [Observer(estimator, self.scheme, self.groups) for _ in range(len(self.scheme.time))]
            self.observer = GroupedObserver(observers)
        else:
            self.observer = Observer(estimator, self.scheme, self.groups)
        self.mode = "observe"
        return self.observer

    def finish(self) -> None:
        """Take over the range observed, and round from now on."""
        if self.observer is not None:
            self.set_qparams(qparams_from_range(*self.observer.range(), self.scheme))
        self.observer, self.mode = None, "on"

    def set_qparams(self, qparams: QParams) -> None:
        """Round to this grid, once `mode` is "on". Scale and zero point have the shape of its own."""
        self.scale.copy_(qparams.scale)
        self.zero_point.copy_(qparams.zero_point)

    def extra_repr(self) -> str:
        """What `print(network)` shows."""
        return f"{self.scheme}, {self.mode}"


def quantizer_or_identity(scheme: Scheme | None, fixed_range: tuple[float, float] | None = None) -> nn.Module:
    """An activation quantizer, or nothing where values stay unquantized (scheme None)."""
    return nn.Identity() if scheme is None else ActivationQuantizer(scheme, fixed_range)


def elementwise(quantizer: nn.Module) -> bool:
    """Whether what `quantizer_or_identity` gave treats each element of a tensor as if it were alone, and learns nothing."""
    if not isinstance(quantizer, ActivationQuantizer) or quantizer.mode == "off":
        return True
    static = quantizer.scheme.time == "static" and isinstance(quantizer.scheme.granularity, PerTensor)
    return quantizer.mode == "on" and static and not quantizer.scale.requires_grad


class QuantizedLayer(WithIntegers):
    """What every quantized layer has beside its torch class.

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
    """What is done to the input before it is rounded, one after another."""
    branch: LowRank | None

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        """The layer of torch, applied to the quantized input; what else a subclass takes changes nothing, see `is_plain`."""
        return self.computed(input, self.multiplied_weight())

    def computed(self, input: Tensor, weight: Tensor) -> Tensor:
        """The same with another weight in the place of `multiplied_weight()`."""
        x = self.transformed(input)
        y = arithmetic(self.kind, self, self.input_quantizer(x), weight)
        return y if self.branch is None else y + self.branch(x, self)

    def transformed(self, input: Tensor) -> Tensor:
        """An input in the coordinates of the transforms."""
        for transform in self.transforms:
            input = transform(input)
        return input

    def quantized_input(self, input: Tensor) -> Tensor:
        """What the weight meets of an input."""
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
        """What the levels of the weight stand for, from the full-precision weight: without what the branch computes."""
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
        """In words, e.g. ``W4A8, per channel, parts 48+48``: the bits of weight and input, the groups of the weight (or else of
        the input) that have a grid each, when the input's grid holds, where that is not always, and what is done before or
        beside."""
        weight, act = self.weight_scheme, getattr(self.input_quantizer, "scheme", None)
        bits = "".join(f"{kind}{scheme.bits if scheme else 32}" for kind, scheme in (("W", weight), ("A", act)))
        one, other = (weight, act) if weight else (act, None)
        before = ["smoothed" if isinstance(transform, Smoothing) else "rotated" for transform in self.transforms]
        beside = [] if self.branch is None else [f"rank {self.branch.rank} beside it"]
        return ", ".join([bits, *(one.traits if one else ()), *(other.timing if other else ()), *before, *beside])

    def extra_repr(self) -> str:
        """What `print(layer)` shows: what torch does of its class, and how it is quantized."""
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
"""Where the arithmetic of a layer is written, in its class or, where somebody has replaced it, on the object itself."""


def arithmetic(kind: Any, layer: Any, x: Tensor, weight: Tensor, *, biased: bool = True) -> Tensor:
    """What a layer of torch's class `kind` with the options, and the bias, of `layer` computes from `x` with `weight`."""
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
    """Of layers of class `own`, which is `kind` or a subclass, and which it stays a subclass of."""
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
