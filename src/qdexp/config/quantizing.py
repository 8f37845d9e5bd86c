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
"""What can be quantized."""
TIMESTEP_GROUPS = "timestep groups"
"""What activations with ``time: groups`` have grids of."""


@dataclass
class WeightGrid:
    """Which weights share one scale: all of a layer (``per_tensor``), or those of each output channel (``per_channel``)."""

    granularity: Literal["per_tensor", "per_channel"] = "per_channel"
    symmetric: bool = False


@dataclass
class ActGrid:
    """Activations have one scale for each tensor.

    ``time``: one and the same always (``static``), one of each sample's own, computed at the call (``dynamic``), or one of each
    of ``groups`` groups of timesteps (``groups``).
    """

    symmetric: bool = False
    time: Literal["static", "dynamic", "groups"] = "static"
    groups: Annotated[int, Gt(1)] = 4


class LayerBits(TypedDict, total=False):
    weight_bits: WeightBits
    act_bits: ActBits


_Bits = Annotated[dict[str, int], GetPydanticSchema(lambda _, handler: handler.generate_schema(LayerBits))]


@dataclass
class Quant:
    """Which grids are computed with. ``layers`` maps a name pattern to ``{weight_bits, act_bits}``.

    ``first_last_bits``: of the first and the last layer, where the others are quantized; null: as the others.
    ``first_act_bits``: of what the first layer reads, x_t itself, where activations are quantized; null: as
    ``first_last_bits`` says.
    """

    weight_bits: WeightBits
    act_bits: ActBits
    softmax_bits: SoftmaxBits
    first_last_bits: WeightBits | None
    first_act_bits: FirstActBits | None = None
    layers: dict[str, _Bits] | None = field(default=None, metadata=ORDERED)  # later patterns win
    weight: WeightGrid = field(default_factory=WeightGrid)
    act: ActGrid = field(default_factory=ActGrid)

    @property
    def label(self) -> str:
        time = "" if self.act.time == "static" else f"+{self.act.time}"
        first = "" if self.first_act_bits is None else f"+first_a{self.first_act_bits}"
        return f"w{self.weight_bits}a{self.act_bits}{time}{first}" + ("+layers" if self.layers else "")

    @property
    def by_layer(self) -> dict[str, Any]:
        """What says the bits of each layer, as ``qdexp.quant.network.plan_bits`` takes it."""
        names = ("weight_bits", "act_bits", "first_last_bits", "layers", "first_act_bits")
        return {name: getattr(self, name) for name in names}

    @property
    def touched(self) -> frozenset[str]:
        """What is quantized at all: WEIGHTS, ACTIVATIONS."""
        bits = {WEIGHTS: "weight_bits", ACTIVATIONS: "act_bits"}
        layers = list((self.layers or {}).values())
        return frozenset(
            what
            for what, option in bits.items()
            if any(one != UNTOUCHED for one in (getattr(self, option), *(layer.get(option, UNTOUCHED) for layer in layers)))
        )

    def only(self, what: Collection[str]) -> "Quant":
        """The same where nothing but ``what`` (WEIGHTS, ACTIVATIONS) is quantized."""
        kept = self
        if WEIGHTS not in what:
            kept = replace(kept, weight_bits=UNTOUCHED, weight=WeightGrid(), layers=_without(kept.layers, "weight_bits"))
        if ACTIVATIONS not in what:
            kept = replace(kept, act_bits=UNTOUCHED, softmax_bits=UNTOUCHED, act=ActGrid(), first_act_bits=None)
            kept = replace(kept, layers=_without(kept.layers, "act_bits"))
        if kept.act.time != "groups":
            kept = kept.at(kept.act.time)
        return kept if kept.touched else replace(kept, first_last_bits=None)

    def at(self, time: Literal["static", "dynamic"]) -> "Quant":
        """The same with activations whose grids are ``static`` or ``dynamic``."""
        return replace(self, act=replace(self.act, time=time, groups=ActGrid().groups))


def _without(layers: dict[str, dict[str, int]] | None, option: str) -> dict[str, dict[str, int]] | None:
    rest = {pattern: {name: bits for name, bits in one.items() if name != option} for pattern, one in (layers or {}).items()}
    return {pattern: bits for pattern, bits in rest.items() if bits} or None


@dataclass
class Quantizer:
    """How the constants of the grids are found: steps, by the names of their slots, each a ``_target_`` with its options.

    The slots of ``conf/quantizer/none.yaml`` come in its order, empty ones null; any other step names the slot that it stands
    ``before`` ("end": after all). What a step may say is up to its class, see ``qdexp.methods``.
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


@dataclass
class Calib:
    """``rows`` samples at each of ``timesteps`` timesteps, chosen by ``strategy``."""

    name: Name = field(metadata=WITHOUT_EFFECT)
    timesteps: Positive
    rows: Positive
    strategy: Target
