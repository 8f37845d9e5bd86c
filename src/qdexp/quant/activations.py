"""Activation quantizers: what rounds what a layer or a product reads.

It has one grid for the tensor or for each part of a concatenation: always, in a group of timesteps, or at the call. It is off
until a grid is found, as a rule by observing what passes.
"""

from dataclasses import replace
from typing import Literal

import torch
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.quant.affine import QParams, fake_quantize, fake_quantize_learned, qparams_from_range
from qdexp.quant.context import CallContext, spread
from qdexp.quant.dynamic import by_row, quantize_dynamic
from qdexp.quant.granularity import whole
from qdexp.quant.handing import Exact
from qdexp.quant.ranges import GroupedObserver, Observer, RangeEstimator
from qdexp.quant.scheme import PerTensor, Scheme, Time, TimeGroups

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
    """The context in which the timestep is read, see `context.share`; None where it does not matter."""

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
            qparams = self.qparams(x)
            learning = self.scale.requires_grad or x.requires_grad  # what was quantized before may be learned through this one
            quantize = fake_quantize_learned if learning else fake_quantize
            return quantize(x, qparams, self.scheme)
        if self.mode == "observe":
            if isinstance(self.observer, GroupedObserver):
                self.observer.observe(x, self._time_groups(x))
            elif self.observer is not None:
                self.observer.observe(x)
        return x

    def qparams(self, x: Tensor) -> QParams:
        """The grids of this call, among those that are kept: [groups] where all rows have the same one, else [len(x),
        groups]."""
        if self.scheme.time == "static":
            return QParams(self.scale, self.zero_point)
        index = self._time_groups(x)
        found = QParams(self.scale[index], self.zero_point[index])
        return QParams(found.scale[0], found.zero_point[0]) if index.shape[0] == 1 else found

    def _time_groups(self, x: Tensor) -> Tensor:
        """The group of timesteps of each index along the first dimension of x, int64 [len(x)]; [1] where all have the same."""
        assert self.context is not None and isinstance(self.scheme.time, TimeGroups)
        index = self.context.groups(self.scheme.time)
        return index if index.shape[0] == 1 else spread(index, x)

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
        """The text that `print(network)` shows."""
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
