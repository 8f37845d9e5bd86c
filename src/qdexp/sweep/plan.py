"""Plan of a sweep: from cells to the graph of jobs, and what these will cost.

In the graph what is in the store is left out, and what cells share is there once. The cost is given as multiply-accumulates
(MACs) of the network's passes, as hours where ``cluster.tflops`` says how fast a device is, and as a guess by the stage times
of earlier records, scaled by MACs.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from dataclasses import fields
from statistics import median

from torch.utils import _pytree as pytree

from qdexp import models
from qdexp.cell import Cell
from qdexp.config import UNTOUCHED, WEIGHTS, Cluster, Config, Model
from qdexp.config.checks import checked
from qdexp.errors import UserError
from qdexp.layout import Layout, records_in
from qdexp.models.conditions import example_condition
from qdexp.models.describe import description_of, per_architecture
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
    """MACs, hours of computing and bytes of disk of ``nodes``, in one line."""
    stages = {stage.entry: (cell, role) for cell in cells for role, stage in cell.stages.items()}
    made = dict.fromkeys(node.entry for node in nodes if node.entry in stages)
    made |= dict.fromkeys(entry for entry, (cell, role) in stages.items() if cell.stages[role].quick and not store.has(entry))
    makes = _counted(stages[entry] for entry in made)
    rates, asked = _rates(store.layout)
    disk = f"{sum(count * disk_bytes(config, stage) for config, stage, count in makes) / 1e9:.2g} GB of disk"
    known = sum(count * (macs(config, stage) or 0) for config, stage, count in makes)
    cluster = cells[0].config.cluster
    rate = (
        "" if cluster.tflops is None else f", {rounded(hours(known, cluster) or 0)} hours at cluster.tflops={cluster.tflops:g}"
    )
    work = f"{rounded(known / 1e12)} TMACs{rate}"
    if not rates:
        return f"{work}; time unknown, {store.layout.records} has no complete record to go by; about {disk}"
    anything = median(rates.values())
    seconds = sum(count * rates.get(stage.name, anything) * multiplications(config, stage) for config, stage, count in makes)
    unlike = sorted({stage.name for _, stage, _ in makes} - rates.keys())
    caveat = f", none of them tells of {', '.join(unlike)}" if unlike else ""
    earlier = "1 earlier record" if asked == 1 else f"{asked} earlier records"
    return f"{work}; about {rounded(seconds / 3600)} hours of computing, a guess by {earlier}{caveat}; about {disk}"


def alike(cell: Cell, role: str) -> tuple[object, ...]:
    """Equal for stages that cost the same, since nothing but their seeds differs: cells share what their configs agree in."""
    return role, *(id(getattr(cell.config, one.name)) for one in fields(Config) if one.name != "seed")


def _counted(stages: Iterable[tuple[Cell, str]]) -> list[tuple[Config, Stage, int]]:
    """One of those that are alike, and how many these are."""
    found: dict[tuple[object, ...], list[tuple[Cell, str]]] = defaultdict(list)
    for cell, role in stages:
        found[alike(cell, role)].append((cell, role))
    return [(cell.config, cell.stages[role], len(same)) for same in found.values() for cell, role in same[:1]]


def rounded(value: float) -> str:
    """The number as exactly as estimates are."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


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
    """The number of parameters of the network."""
    return models.parameters(model)


@per_architecture
def _macs(model: Model) -> int | None:
    """The MACs of one forward pass of one image."""
    description = description_of(model)
    return None if description is None else description.macs


@per_architecture
def _condition_numbers(model: Model) -> int:
    """The number of values that make one row's condition."""
    return sum(part[0].numel() for part in pytree.tree_leaves(example_condition(models.skeleton(model), stated=model.example)))


def passes(config: Config, stage: Stage) -> float:
    """About how many rows a stage of a cell sends through the network; a backward pass counts as two."""
    branches = config.protocol.branches if config.model.condition is not None else 1
    walk = config.protocol.steps * branches
    if isinstance(stage, Sharded):
        return float(len(stage.shards) * config.sampling.batch * walk)
    if isinstance(stage, StepStage):
        return stage.step.passes(config.calib.timesteps * config.calib.rows * branches)
    looked_at = config.inspection.rows
    both = {"curves": config.protocol.heldout * walk, "activations": looked_at * walk, "layers": looked_at}
    return 2.0 * both.get(stage.name, 0)  # from each x_t and from its own, ranges and histograms, both networks


def macs(config: Config, stage: Stage) -> float | None:
    """The MACs of a stage's passes; those of first stages, text encoders and extractors are not counted. None where the network
    cannot run on shapes alone."""
    one = _macs(config.model)
    return None if one is None else passes(config, stage) * one


def hours(count: float | None, cluster: Cluster) -> float | None:
    """The hours of so many MACs, two operations each, on one device; None where nothing tells how fast it is."""
    return None if count is None or cluster.tflops is None else 2 * count / (cluster.tflops * 1e12) / 3600


def multiplications(config: Config, stage: Stage) -> float:
    """About how many a stage of a cell needs, whatever these are: to scale times by."""
    one = _macs(config.model) or _parameters(config.model)
    return one * (passes(config, stage) or config.protocol.n)


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
