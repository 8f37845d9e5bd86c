"""Options of how a network is quantized: grids, the steps of the method, calibration rows."""

from collections.abc import Collection
from dataclasses import dataclass, field, replace
from typing import Any

from qdexp.config.checks import ORDERED, UNTOUCHED, WITHOUT_EFFECT, Target, require, require_bits

WEIGHTS, ACTIVATIONS = "weights", "activations"
"""What can be quantized."""
TIMESTEP_GROUPS = "timestep groups"
"""What activations with ``time: groups`` have grids of."""


@dataclass
class WeightGrid:
    """Which weights share one scale: all of a layer (``per_tensor``), or those of each output channel (``per_channel``)."""

    granularity: str = "per_channel"
    symmetric: bool = False

    def __post_init__(self) -> None:
        known = ("per_tensor", "per_channel")
        require(self.granularity in known, "quant.weight.granularity", self.granularity, f"choose {' or '.join(known)}")


@dataclass
class ActGrid:
    """Activations have one scale for each tensor.

    ``time``: one and the same always (``static``), one of each sample's own, computed at the call (``dynamic``), or one of each
    of ``groups`` groups of timesteps (``groups``).
    """

    symmetric: bool = False
    time: str = "static"
    groups: int = 4

    def __post_init__(self) -> None:
        known = ("static", "dynamic", "groups")
        require(self.time in known, "quant.act.time", self.time, f"choose one of {', '.join(known)}")
        require(self.groups > 1, "quant.act.groups", self.groups, "choose 2 or more groups of timesteps")


@dataclass
class Quant:
    """Which grids are computed with. ``layers`` maps a name pattern to ``{weight_bits, act_bits}``.

    ``first_last_bits``: of the first and the last layer, where the others are quantized; null: as the others.
    """

    weight_bits: int
    act_bits: int
    softmax_bits: int
    first_last_bits: int | None
    layers: dict[str, dict[str, int]] | None = field(default=None, metadata=ORDERED)  # later patterns win
    weight: WeightGrid = field(default_factory=WeightGrid)
    act: ActGrid = field(default_factory=ActGrid)

    def __post_init__(self) -> None:
        require_bits("quant.weight_bits", self.weight_bits, 2, 8)
        require_bits("quant.act_bits", self.act_bits, 4, 8)
        require_bits("quant.softmax_bits", self.softmax_bits, 4, 16)
        if self.first_last_bits is not None:
            require_bits("quant.first_last_bits", self.first_last_bits, 2, 8)
        for pattern, bits in (self.layers or {}).items():
            unknown = set(bits) - {"weight_bits", "act_bits"}
            require(not unknown, f"quant.layers.{pattern}", sorted(unknown), "only weight_bits and act_bits can be set")
            require_bits(f"quant.layers.{pattern}.weight_bits", bits.get("weight_bits", UNTOUCHED), 2, 8)
            require_bits(f"quant.layers.{pattern}.act_bits", bits.get("act_bits", UNTOUCHED), 4, 8)

    @property
    def label(self) -> str:
        time = "" if self.act.time == "static" else f"+{self.act.time}"
        return f"w{self.weight_bits}a{self.act_bits}{time}" + ("+layers" if self.layers else "")

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
            kept = replace(kept, act_bits=UNTOUCHED, softmax_bits=UNTOUCHED, act=ActGrid())
            kept = replace(kept, layers=_without(kept.layers, "act_bits"))
        if kept.act.time != "groups":
            kept = kept.at(kept.act.time)
        return kept if kept.touched else replace(kept, first_last_bits=None)

    def at(self, time: str) -> "Quant":
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

    name: str = field(metadata=WITHOUT_EFFECT)
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

    name: str = field(metadata=WITHOUT_EFFECT)
    timesteps: int
    rows: int
    strategy: Target

    def __post_init__(self) -> None:
        require(self.timesteps > 0, "calib.timesteps", self.timesteps, "choose at least 1")
        require(self.rows > 0, "calib.rows", self.rows, "choose at least 1")
        require("_target_" in self.strategy, "calib.strategy", self.strategy, "name the strategy's function as _target_")
