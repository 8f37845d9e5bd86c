"""What a sweep needs: cells -> graph of jobs, and what these will cost.

In the graph what is in the store is left out, and what cells share is there once. The cost is a guess, by the stage times of
earlier records, scaled by multiplications, rows and steps.
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from statistics import median

from torch.utils import _pytree as pytree

from qdexp import models
from qdexp.cell import Cell
from qdexp.config import UNTOUCHED, WEIGHTS, Config, Model
from qdexp.config.checks import checked
from qdexp.errors import UserError
from qdexp.layout import Layout, records_in
from qdexp.models.conditions import example_condition
from qdexp.models.describe import describe, per_architecture
from qdexp.record import read_records
from qdexp.stages.base import Sharded, Stage
from qdexp.stages.conditions import ConditionsStage
from qdexp.stages.steps import StepStage
from qdexp.store import Store
from qdexp.sweep.jobs import RECORD, Node

LOOKED_AT = 20
"""The newest records that are asked."""


def plan(cells: Sequence[Cell], store: Store, parts: int) -> list[Node]:
    """The missing jobs of ``cells``, in an order in which they can run; stages of shards are cut into at most ``parts``.

    A cell whose record holds all that is measured of it needs nothing.
    """
    missing = [cell for cell in cells if cell.finished() is None]
    planner = _Planner(store, parts, {stage.entry for cell in missing for stage in cell.stages.values() if not stage.quick})
    for cell in missing:
        planner.add(cell)
    return list(planner.nodes.values())


class _Planner:
    def __init__(self, store: Store, parts: int, slow: set[str]) -> None:
        """``slow``: the entries that take a job of their own in any cell."""
        self.store, self.parts, self.slow = store, parts, slow
        self.nodes: dict[str, Node] = {}
        self._providers: dict[str, tuple[str, ...]] = {}

    def add(self, cell: Cell) -> None:
        roles = {stage.entry: role for role, stage in cell.stages.items()}
        needs = [need for stage in cell.stages.values() for need in self._ready(cell, stage, roles)]
        name = f"{RECORD}-{cell.name}"
        self.nodes[name] = Node(name, RECORD, cell.key, RECORD, name, _unique(needs))

    def _ready(self, cell: Cell, stage: Stage, roles: dict[str, str]) -> tuple[str, ...]:
        """The jobs after which ``stage`` is in the store, or, where it is quick, all that it reads."""
        if stage.entry not in self._providers:
            if self.store.has(stage.entry):
                self._providers[stage.entry] = ()
            else:
                needs = _unique([need for one in stage.inputs.values() for need in self._ready(cell, one, roles)])
                self._providers[stage.entry] = (
                    self._make(cell, stage, roles[stage.entry], needs) if stage.entry in self.slow else needs
                )
        return self._providers[stage.entry]

    def _make(self, cell: Cell, stage: Stage, role: str, needs: tuple[str, ...]) -> tuple[str, ...]:
        parts = min(self.parts, len(stage.shards)) if isinstance(stage, Sharded) else 1
        names = [stage.entry] if parts == 1 else [f"{stage.entry}.{part}-of-{parts}" for part in range(parts)]
        for part, name in enumerate(names):
            self.nodes[name] = Node(name, stage.name, cell.key, role, stage.entry, needs, part, parts)
        return tuple(names)


def _unique(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(names))


def estimate(cells: Sequence[Cell], nodes: Sequence[Node], store: Store) -> str:
    """Hours of computing and bytes of disk of ``nodes``, in one line."""
    stages = {stage.entry: (cell.config, stage) for cell in cells for stage in cell.stages.values()}
    makes = {node.entry: stages[node.entry] for node in nodes if node.entry in stages}
    makes |= {entry: one for entry, one in stages.items() if one[1].quick and not store.has(entry)}
    rates, asked = _rates(store.layout)
    disk = f"{sum(disk_bytes(config, stage) for config, stage in makes.values()) / 1e9:.2g} GB of disk"
    if not rates:
        return f"time unknown, {store.layout.records} has no complete record to go by; about {disk}"
    anything = median(rates.values())
    seconds = sum(rates.get(stage.name, anything) * multiplications(config, stage) for config, stage in makes.values())
    unlike = sorted({stage.name for _, stage in makes.values()} - rates.keys())
    caveat = f", none of them tells of {', '.join(unlike)}" if unlike else ""
    hours = seconds / 3600
    time = f"{hours:.0f}" if hours >= 10 else f"{hours:.2g}"
    earlier = "1 earlier record" if asked == 1 else f"{asked} earlier records"
    return f"about {time} hours of computing, a guess by {earlier}{caveat}; about {disk}"


def _rates(layout: Layout) -> tuple[dict[str, float], int]:
    """Seconds a multiplication by stage, and from how many records."""
    paths = sorted(records_in(layout.records), key=lambda path: -path.stat().st_mtime_ns)[:LOOKED_AT]
    found: dict[str, list[float]] = defaultdict(list)
    asked = 0
    for path in paths:
        try:
            record = read_records([path])[0]
            cell = Cell(checked(Config, record["config"]))
            stages = cell.stages if record["status"] == "complete" else {}
        except (UserError, OSError):
            continue  # of another version, or its weights are gone
        for role, stage in stages.items():
            cost = record["costs"].get(role, {})
            if "seconds" in cost and "resumed" not in cost:
                found[stage.name].append(cost["seconds"] / multiplications(cell.config, stage))
        asked += bool(stages)
    return {name: median(values) for name, values in found.items()}, asked


@per_architecture
def _parameters(model: Model) -> int:
    """How many numbers the network learned."""
    return models.parameters(model)


@per_architecture
def _macs(model: Model) -> float:
    """Multiplications of one forward pass of one image."""
    try:
        return float(describe(model).macs)
    except UserError:  # some networks cannot run without values: a guess may do without
        return float(_parameters(model))


@per_architecture
def _condition_numbers(model: Model) -> int:
    """How many numbers tell the network what one row is asked for."""
    return sum(part[0].numel() for part in pytree.tree_leaves(example_condition(models.skeleton(model), stated=model.example)))


def multiplications(config: Config, stage: Stage) -> float:
    """About how many a stage of a cell needs."""
    steps = config.protocol.steps
    rows = config.calib.timesteps * config.calib.rows
    one = _macs(config.model)
    if isinstance(stage, Sharded):
        return len(stage.shards) * config.sampling.batch * steps * one
    if isinstance(stage, StepStage):
        return stage.step.passes(rows) * one
    return (2 * config.protocol.heldout * steps if stage.name == "curves" else config.protocol.n) * one


def disk_bytes(config: Config, stage: Stage) -> float:
    """About how large the result of a stage of a cell is."""
    image = math.prod(config.model.shape)
    if stage.name == "trajectory":
        assert isinstance(stage, Sharded)
        return 8.0 * len(stage.shards) * config.sampling.batch * config.protocol.steps * image  # x_t and eps, float32
    numbers, branches = _condition_numbers(config.model), config.protocol.branches
    if isinstance(stage, ConditionsStage):
        return 4.0 * len(stage.wanted) * numbers
    weights = _parameters(config.model)
    if isinstance(stage, StepStage):
        bits = config.quant.weight_bits if WEIGHTS in stage.step.quantizes or stage.before else UNTOUCHED
        return weights * bits / 8
    sizes = {
        "calibration": 4.0 * config.calib.timesteps * config.calib.rows * branches * (image + numbers),
        "samples": float(config.protocol.n * image),
        "features": 4.0 * config.protocol.n * 100,
    }
    return sizes.get(stage.name, 0.0)
