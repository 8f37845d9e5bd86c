"""Options of how a network is quantized: grids, the steps of the method, calibration rows."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Annotated, Any, Literal

from annotated_types import Gt
from pydantic import GetPydanticSchema
from typing_extensions import TypedDict  # pydantic's of Python 3.11

from qdexp.config.checks import (
    ORDERED,
    UNTOUCHED,
    WITHOUT_EFFECT,
    ActBits,
    FirstActBits,
    Name,
    Positive,
    SoftmaxBits,
    Target,
    WeightBits,
)

WEIGHTS, ACTIVATIONS = "weights", "activations"
"""The kinds of tensors that can be quantized."""
TIMESTEP_GROUPS = "timestep groups"
"""The grids of activations with ``time: groups``."""


Number = Literal["int", "e2m1", "e4m3", "e5m2"]
Scale = Literal["float32", "float16", "bfloat16", "e8m0", "e4m3"]
Group = Literal[16, 32, 64, 128]
NUMBER_BITS = {"e2m1": 4, "e4m3": 8, "e5m2": 8}
"""The bits of floating point numbers; integers have any."""
NAMED = {
    ("e2m1", "e8m0", 32): "mxfp4",
    ("e4m3", "e8m0", 32): "mxfp8",
    ("e5m2", "e8m0", 32): "mxfp8_e5m2",
    ("e2m1", "e4m3", 16): "nvfp4",
}
"""Formats of groups that have a name, by number, scale and group."""
ONLY_ACTIVATIONS = ("token", "dynamic", "groups")
"""The words of a label for activations alone."""


@dataclass(frozen=True)
class WeightGrid:
    """The grids of weights.

    Attributes:
        number: Integers, or floating point numbers, which are symmetric.
        granularity: The weights that share a scale: all of a layer (``per_tensor``), those of an output channel
            (``per_channel``), or neighbours along the input channels (``per_group``).
        group: The number of elements of a group, with ``per_group``.
        symmetric: Whether the zero point is 0.
        scale: The type of the scales.
    """

    number: Number = "int"
    granularity: Literal["per_tensor", "per_channel", "per_group"] = "per_channel"
    group: Group | None = None
    symmetric: bool = False
    scale: Scale = "float32"

    def __post_init__(self) -> None:
        _check_grid(self)

    @property
    def traits(self) -> list[str]:
        """The words of the label for this grid, beside the bits."""
        return _traits(self)


@dataclass(frozen=True)
class ActGrid:
    """The grids of activations.

    Attributes:
        number: Integers, or floating point numbers, which are symmetric.
        granularity: The activations that share a scale: all of a tensor (``per_tensor``), those of a token or pixel
            (``per_token``), or neighbours along the features (``per_group``). Tokens and groups are dynamic.
        group: The number of elements of a group, with ``per_group``.
        symmetric: Whether the zero point is 0.
        scale: The type of the scales.
        time: When a grid holds: always (``static``), for one sample at one call (``dynamic``), or for one of several groups of
            timesteps (``groups``).
        groups: The number of groups of timesteps, with ``time=groups``.
    """

    number: Number = "int"
    granularity: Literal["per_tensor", "per_token", "per_group"] = "per_tensor"
    group: Group | None = None
    symmetric: bool = False
    scale: Scale = "float32"
    time: Literal["static", "dynamic", "groups"] = "static"
    groups: Annotated[int, Gt(1)] = 4

    def __post_init__(self) -> None:
        _check_grid(self)
        if self.granularity != "per_tensor" and self.time != "dynamic":
            raise ValueError(f"time={self.time}: scales of each token or group are computed at the call; give "
                             f"quant.act.time=dynamic, or quant.act.granularity=per_tensor")  # fmt: skip
        if self.time != "dynamic" and self.scale != "float32":
            raise ValueError(f"scale={self.scale}: activations that have one scale a tensor keep it in float32; give "
                             f"quant.act.scale=float32, or quant.act.time=dynamic")  # fmt: skip

    @property
    def traits(self) -> list[str]:
        """The words of the label for this grid, beside the bits."""
        return _traits(self) + ([] if self.time == "static" or self.granularity != "per_tensor" else [self.time])


def _check_grid(grid: WeightGrid | ActGrid) -> None:
    if (grid.granularity == "per_group") != (grid.group is not None):
        fix = "give 16, 32, 64 or 128" if grid.group is None else "goes with granularity=per_group alone; leave it null"
        raise ValueError(f"group={'null' if grid.group is None else grid.group}: {fix}")
    if grid.number != "int" and not grid.symmetric:
        raise ValueError(f"symmetric=false: numbers of {grid.number} have no zero point; give symmetric=true, or number=int")
    if grid.scale == "e8m0" and grid.number == "int":
        raise ValueError("scale=e8m0: goes with floating point numbers; give number=e2m1, e4m3 or e5m2, or another scale")
    if grid.scale == "e4m3" and (grid.number, grid.granularity) != ("e2m1", "per_group"):
        raise ValueError("scale=e4m3: goes with number=e2m1 and granularity=per_group alone; give another scale")


def _traits(grid: WeightGrid | ActGrid) -> list[str]:
    named = NAMED.get((grid.number, grid.scale, grid.group or 0))
    if named is not None:
        return [named]
    number = [] if grid.number == "int" else [grid.number]
    group = {"per_group": [f"g{grid.group}"], "per_token": ["token"]}.get(grid.granularity, [])
    return [*number, *group, *([grid.scale] if grid.scale in ("e8m0", "e4m3") else [])]


class LayerBits(TypedDict, total=False):
    weight_bits: WeightBits
    act_bits: ActBits


_Bits = Annotated[dict[str, int], GetPydanticSchema(lambda _, handler: handler.generate_schema(LayerBits))]


@dataclass(frozen=True)
class Quant:
    """The grids that the network computes with.

    Attributes:
        weight_bits: Bits of a weight; 32: unquantized.
        act_bits: Bits of an activation; 32: unquantized.
        softmax_bits: Bits of the softmax output, integers of [0, 1] in every format.
        first_last_bits: Bits of the first and the last layer, where the others are quantized; null: as the others.
        first_act_bits: Bits of x_t, the input of the first layer, where activations are quantized; null: as
            ``first_last_bits``.
        layers: Bits by layer name: a pattern and its ``{weight_bits, act_bits}``; later patterns win.
        weight: The grids of weights.
        act: The grids of activations.
    """

    weight_bits: WeightBits
    act_bits: ActBits
    softmax_bits: SoftmaxBits
    first_last_bits: WeightBits | None
    first_act_bits: FirstActBits | None = None
    layers: dict[str, _Bits] | None = field(default=None, metadata=ORDERED)  # later patterns win
    weight: WeightGrid = field(default_factory=WeightGrid)
    act: ActGrid = field(default_factory=ActGrid)

    def __post_init__(self) -> None:
        for what, bits, grid in (("weight", self.weight_bits, self.weight), ("act", self.act_bits, self.act)):
            own = NUMBER_BITS.get(grid.number, bits)
            if bits not in (own, UNTOUCHED):
                raise ValueError(f"{what}_bits={bits}: numbers of {grid.number} have {own} bits; give "
                                 f"quant.{what}_bits={own}, or quant.{what}.number=int")  # fmt: skip

    @property
    def label(self) -> str:
        """Short, for names and tables: the bits, what of the grids is out of the ordinary (once, where it is the same of
        weights and activations), and whether the first layer's input or layers have bits of their own."""
        weight = self.weight.traits if self.weight_bits != UNTOUCHED else []
        act = self.act.traits if self.act_bits != UNTOUCHED else []
        if UNTOUCHED not in (self.weight_bits, self.act_bits):
            weight, act = (
                [f"w_{one}" for one in weight if one not in act],
                [one if one in (*weight, *ONLY_ACTIVATIONS) else f"a_{one}" for one in act],
            )
        first = [] if self.first_act_bits is None else [f"first_a{self.first_act_bits}"]
        return "+".join([f"w{self.weight_bits}a{self.act_bits}", *weight, *act, *first, *(["layers"] if self.layers else [])])

    @property
    def by_layer(self) -> dict[str, Any]:
        """The arguments for ``qdexp.quant.network.plan_bits`` that set the bits of each layer."""
        names = ("weight_bits", "act_bits", "first_last_bits", "layers", "first_act_bits")
        return {name: getattr(self, name) for name in names}

    @property
    def touched(self) -> frozenset[str]:
        """The kinds of tensors that are quantized at all: WEIGHTS, ACTIVATIONS."""
        bits = {WEIGHTS: "weight_bits", ACTIVATIONS: "act_bits"}
        layers = list((self.layers or {}).values())
        return frozenset(
            what
            for what, option in bits.items()
            if any(one != UNTOUCHED for one in (getattr(self, option), *(layer.get(option, UNTOUCHED) for layer in layers)))
        )

    def only(self, what: Collection[str]) -> "Quant":
        """Return this format with everything but ``what`` (WEIGHTS, ACTIVATIONS) in full precision."""
        kept = self
        if WEIGHTS not in what:
            kept = replace(kept, weight_bits=UNTOUCHED, weight=WeightGrid(), layers=_without(kept.layers, "weight_bits"))
        if ACTIVATIONS not in what:
            kept = replace(kept, act_bits=UNTOUCHED, softmax_bits=UNTOUCHED, act=ActGrid(), first_act_bits=None)
            kept = replace(kept, layers=_without(kept.layers, "act_bits"))
        if kept.act.time != "groups":
            kept = kept.at(kept.act.time)
        return kept if kept.touched else replace(kept, first_last_bits=None)

    @property
    def keeps_grids(self) -> bool:
        """Whether any activations have grids that are found beforehand, and can be learned: where grids are computed at the
        call, those of layers with other bits than the format's own."""
        if self.act.time != "dynamic":
            return True
        others = {self.first_last_bits, *(layer.get("act_bits") for layer in (self.layers or {}).values())}
        return self.act.granularity != "per_tensor" and bool(others - {None, UNTOUCHED, self.act_bits})

    def at(self, time: Literal["static", "dynamic"]) -> "Quant":
        """Return this format with ``static`` or ``dynamic`` grids of activations."""
        return replace(self, act=replace(self.act, time=time, groups=ActGrid().groups))


def _without(layers: dict[str, dict[str, int]] | None, option: str) -> dict[str, dict[str, int]] | None:
    rest = {pattern: {name: bits for name, bits in one.items() if name != option} for pattern, one in (layers or {}).items()}
    return {pattern: bits for pattern, bits in rest.items() if bits} or None


@dataclass(frozen=True)
class Quantizer:
    """The steps that find the constants of the grids.

    Attributes:
        name: The choice of ``quantizer``.
        steps: The steps by the names of their slots, each a ``_target_`` with its options. The slots of
            ``conf/quantizer/none.yaml`` come in its order, empty ones null; a step in a slot of its own names the slot that it
            stands ``before`` ("end": after all).
    """

    name: Name = field(metadata=WITHOUT_EFFECT)
    steps: dict[str, Any] = field(default_factory=dict)

    @property
    def filled(self) -> dict[str, dict[str, Any]]:
        """The slots that are not empty."""
        return {slot: node for slot, node in self.steps.items() if node is not None}

    @property
    def learns(self) -> bool:
        """Whether any step has the options of ``recon``."""
        return any(isinstance(node, dict) and "heldout" in node for node in self.filled.values())


@dataclass(frozen=True)
class Calib:
    """The calibration set.

    Attributes:
        name: The choice of ``calib``.
        timesteps: The number of timesteps that rows come from.
        rows: The number of samples per timestep.
        strategy: The function that chooses the timesteps.
    """

    name: Name = field(metadata=WITHOUT_EFFECT)
    timesteps: Positive
    rows: Positive
    strategy: Target
