"""The steps of a cell from ``quantizer.steps``, in order, each checked: alone, beside the others and for the cell."""

from collections.abc import Mapping, Sequence
from difflib import get_close_matches
from typing import Any

from qdexp.config import ACTIVATIONS, TIMESTEP_GROUPS, WEIGHTS, Config
from qdexp.config.checks import PART_NAME
from qdexp.errors import UserError
from qdexp.methods.base import MADE, OPTION, NamedStep, Step
from qdexp.targets import TARGET, made

SLOTS = ("released", "split", "smooth", "rotate", "low_rank", "weights", "act", "timestep_scales", "scales")
"""The slots of ``conf/quantizer/none.yaml``, in order."""
END = "end"
"""The word in place of a slot: after all of them."""
_FILLS = {WEIGHTS: "weights", ACTIVATIONS: "act", TIMESTEP_GROUPS: "timestep_scales"}
BEFORE = "before"


def steps_of(config: Config) -> list[NamedStep]:
    """The steps that do something in a cell, in order; none where it is of full precision.

    Raises UserError, one line with the option, where a step or an option of one is not there or not possible, where the steps
    stand in an order that cannot be, or where they leave something in full precision that ``quant`` gives bits to.
    """
    if config.full_precision:
        return []
    quant, nodes = config.quant, config.quantizer.filled
    steps = [_made(slot, nodes[slot]) for slot in ordered(nodes)]
    steps = [one for one in steps if one.step.applies(quant)]
    quantized: dict[str, str] = {}
    for one in steps:
        for what in sorted(one.step.precedes & quantized.keys()):
            does = "makes" if what in MADE else "quantizes"
            raise UserError(f"{one.option}: stands after {quantized[what]}, which {does} the {what}; it has to stand before "
                            f"(before: {quantized[what]})")  # fmt: skip
        for what in sorted(one.step.needs - quantized.keys()):
            raise UserError(f"{one.option}: no step before it quantizes the {what}, which it needs; fill the slot "
                            f"{_FILLS[what]}")  # fmt: skip
        quantized |= dict.fromkeys(one.step.quantizes, one.slot)
    for what, option, alone in ((WEIGHTS, "weight_bits", "w32a8"), (ACTIVATIONS, "act_bits", "w4a32")):
        if what in quant.touched - quantized.keys():
            raise UserError(f"quant.{option}={getattr(quant, option)}: no step of {OPTION} quantizes the {what}; fill the "
                            f"slot {_FILLS[what]}, or leave them in full precision (quant={alone})")  # fmt: skip
    if ACTIVATIONS in quant.touched and quant.act.time == "groups" and TIMESTEP_GROUPS not in quantized:
        raise UserError(f"quant.act.time=groups: no step of {OPTION} finds groups of timesteps; fill the slot "
                        f"{_FILLS[TIMESTEP_GROUPS]}, or give quant.act.time=static")  # fmt: skip
    return steps


def check(config: Config, steps: Sequence[NamedStep]) -> None:
    """Raises UserError for what a step cannot do in this cell."""
    for one in steps:
        try:
            one.step.check(config)
        except ValueError as error:
            raise UserError(f"{one.option}.{error}") from error


def ordered(nodes: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The slots that are filled, in the order in which their steps are taken: that of ``SLOTS``, but for those that say what
    they stand before."""
    own = {slot: node for slot, node in nodes.items() if slot not in SLOTS or (isinstance(node, Mapping) and BEFORE in node)}
    order: list[str] = [*(slot for slot in SLOTS if slot not in own), END]
    for slot in own:
        if not PART_NAME.fullmatch(slot) or slot == END:
            raise UserError(f"{OPTION}.{slot}: is no name of a step; give small letters, digits and _ alone, at most 40")
    while own:
        placed = [slot for slot, node in own.items() if isinstance(node, Mapping) and node.get(BEFORE) in order]
        if not placed:
            slot, node = next(iter(own.items()))
            before = node.get(BEFORE) if isinstance(node, Mapping) else None
            near = get_close_matches(slot, SLOTS, 1)
            told = f"{OPTION}.{slot}.{BEFORE}={before}: no such step" if before else f"{OPTION}.{slot}: no such slot"
            meant = f" (did you mean {near[0]}?)" if near and slot not in SLOTS else ""
            raise UserError(f"{told}{meant}; a step of your own, or one that is moved, says which one it stands before: "
                            f"{BEFORE}: {' or '.join(order)}")  # fmt: skip
        for slot in placed:
            order.insert(order.index(own.pop(slot)[BEFORE]), slot)
    return [slot for slot in order if slot in nodes]


def _made(slot: str, node: Any) -> NamedStep:
    step = made(Step, node, f"{OPTION}.{slot}", ours="qdexp.methods", without=(BEFORE,), optional=True)  # type: ignore[type-abstract]
    return NamedStep(slot, str(node[TARGET]), step)
