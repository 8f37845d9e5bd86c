"""Formats: which scheme a weight or an activation has, by the bits of its layer.

A format has bits of its own. What a network gives other bits than these, such as its first and last layer, has integers:
weights a scale per output channel, activations one per tensor, found beforehand. A format of plain integers, per tensor or
channel, has any bits.

Groups lie along the axis over which a product sums: the input channels of a layer's weight and input, the features of Q and K,
the tokens of V. Weights of convolutions of several groups, and those of fewer than 16 input channels (of a part, where the
layer is quantized in parts), keep a scale per output channel.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from qdexp.quant.dynamic import LEAST
from qdexp.quant.granularity import PerChannel, PerGroup, PerTensor, Split, Whole, whole
from qdexp.quant.scheme import INT, Scheme

FLOAT = 32
"""Bits of what is left in floating point."""


@dataclass(frozen=True)
class WeightFormat:
    """The format of weights. ``bits``: its own, None for any.

    ``group``: the elements that share a scale, with the granularity ``per_group``; ``number`` and ``scale``: see ``Scheme``.
    """

    bits: int | None = None
    number: str = INT
    granularity: Literal["per_tensor", "per_channel", "per_group"] = "per_channel"
    group: int | None = None
    symmetric: bool = False
    scale: str = "float32"

    def scheme(self, bits: int, layer: Any, sizes: tuple[int, ...] | None = None) -> Scheme | None:
        """The scheme of a layer's weight; None for one that is left in floating point. sizes: the input channels of its parts,
        if it has any."""
        if bits == FLOAT:
            return None
        grouped = min(sizes or [layer.weight.shape[1]]) >= LEAST and getattr(layer, "groups", 1) == 1
        if not _is_own(self, bits):
            return Scheme(bits, _parts(PerChannel(), sizes), self.number == INT and self.symmetric)
        whole_weight: Whole = PerTensor() if self.granularity == "per_tensor" else PerChannel()
        if self.granularity == "per_group" and grouped:
            whole_weight = PerGroup(self.group, 1)
        return Scheme(bits, _parts(whole_weight, sizes), self.symmetric, "static", self.number, self.scale)


@dataclass(frozen=True)
class ActFormat:
    """The format of activations. ``bits``: its own, None for any.

    ``time``: when grids hold; where they follow groups of timesteps they are static until these are known, see ``timegroups``.
    """

    bits: int | None = None
    number: str = INT
    granularity: Literal["per_tensor", "per_token", "per_group"] = "per_tensor"
    group: int | None = None
    symmetric: bool = False
    scale: str = "float32"
    time: Literal["static", "dynamic", "groups"] = "static"
    groups: int = 1

    def scheme(self, bits: int, axis: int = -1, sizes: tuple[int, ...] | None = None) -> Scheme | None:
        """The scheme of an activation; None for one that is left in floating point. axis: that along which its product sums up;
        sizes: the numbers of channels, dimension 1, of its parts, if it has any."""
        if bits == FLOAT:
            return None
        per_tensor = self.granularity == "per_tensor"
        time: Literal["static", "dynamic"] = "dynamic" if self.time == "dynamic" else "static"
        if not _is_own(self, bits):
            return Scheme(
                bits, _parts(PerTensor(), sizes), self.number == INT and self.symmetric, time if per_tensor else "static"
            )
        one = PerTensor() if per_tensor else PerGroup(self.group if self.granularity == "per_group" else None, axis)
        return Scheme(bits, _parts(one, sizes), self.symmetric, time, self.number, self.scale)


def along(scheme: Scheme | None, axis: int) -> Scheme | None:
    """The scheme with groups along another axis, if it has any."""
    if scheme is None or not isinstance(whole(scheme.granularity), PerGroup):
        return scheme
    assert isinstance(scheme.granularity, PerGroup)
    return replace(scheme, granularity=replace(scheme.granularity, axis=axis))


def input_axis(layer: Any) -> int:
    """The axis of a layer's input over which it sums."""
    return -1 if layer.weight.ndim == 2 else 1


def _is_own(one: WeightFormat | ActFormat, bits: int) -> bool:
    plain = one.number == INT and one.granularity in ("per_tensor", "per_channel")
    return plain or one.bits in (None, bits)


def _parts(one: Whole, sizes: Sequence[int] | None) -> Whole | Split:
    return one if sizes is None else Split(tuple(sizes), one)
