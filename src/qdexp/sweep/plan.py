"""Plan of a sweep: from cells to the graph of jobs, and what these will cost.


In the graph what is in the store is left out, and what cells share is there once. The cost is given as multiply-accumulates
(MACs) of the network's passes, as hours where ``cluster.tflops`` says how fast a device is, and as a guess of the time by what
was measured (``pace``).
"""

import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import fields

from torch.utils import _pytree as pytree

from qdexp import models
from qdexp.cell import Cell
from qdexp.config import UNTOUCHED, WEIGHTS, Cluster, Config, Model
from qdexp.models.conditions import example_condition
from qdexp.models.describe import description_of, per_architecture
from qdexp.stages.base import Sharded, Stage
from qdexp.stages.conditions import ConditionsStage
from qdexp.stages.steps import StepStage
from qdexp.store import Store
from qdexp.sweep.jobs import RECORD, Node


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


Work = Sequence[tuple[Config, Stage, int]]
"""The stages that are to be made: of those that cost the same one, with the config of a cell that needs it, and their count."""


def work_of(cells: Sequence[Cell], nodes: Sequence[Node], store: Store) -> Work:
    """The stages that the jobs ``nodes`` of the cells make, and the quick ones beside them."""
    stages = {stage.entry: (cell, role) for cell in cells for role, stage in cell.stages.items()}
    made = dict.fromkeys(node.entry for node in nodes if node.entry in stages)
    made |= dict.fromkeys(entry for entry, (cell, role) in stages.items() if cell.stages[role].quick and not store.has(entry))
    found: dict[tuple[object, ...], list[tuple[Cell, str]]] = defaultdict(list)
    for cell, role in (stages[entry] for entry in made):
        found[alike(cell, role)].append((cell, role))
    return [(cell.config, cell.stages[role], len(same)) for same in found.values() for cell, role in same[:1]]


def alike(cell: Cell, role: str) -> tuple[object, ...]:
    """Equal for stages that cost the same, since nothing but their seeds differs: cells share what their configs agree in."""
    return role, *(id(getattr(cell.config, one.name)) for one in fields(Config) if one.name != "seed")


def rounded(value: float) -> str:
    """The number as exactly as estimates are."""
    return f"{value:,.0f}" if value >= 10 else f"{value:.2g}"


@per_architecture
def parameters(model: Model) -> int:
    """The number of parameters of the network."""
    return models.parameters(model)


@per_architecture
def _macs(model: Model) -> int | None:
    """The MACs of one forward pass of one image."""
    description = description_of(model)
    return None if description is None else description.macs


@per_architecture
def _layers(model: Model) -> int:
    """The number of layers that can be quantized; 0 where that is not known."""
    description = description_of(model)
    return 0 if description is None else len(description.order)


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
    found = {
        "curves": 2 * config.protocol.heldout * walk,  # from each x_t, and from its own
        "activations": 2 * looked_at * walk,  # ranges and histograms
        "layers": looked_at * (1 + _layers(config.model)),  # one after another, in the full-precision network
    }
    return float(found.get(stage.name, 0))


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
    return multiplications_of_row(config) * (passes(config, stage) or config.protocol.n)


def multiplications_of_row(config: Config) -> int:
    """Multiply-accumulates of one row in one pass; by the parameters where the network cannot run on shapes alone."""
    return _macs(config.model) or parameters(config.model)


def disk_bytes(config: Config, stage: Stage) -> float:
    """About how large the result of a stage of a cell is."""
    image = math.prod(config.model.shape)
    if stage.name == "trajectory":
        assert isinstance(stage, Sharded)
        return 8.0 * len(stage.shards) * config.sampling.batch * config.protocol.steps * image  # x_t and eps, float32
    numbers, branches = _condition_numbers(config.model), config.protocol.branches
    if isinstance(stage, ConditionsStage):
        return 4.0 * len(stage.wanted) * numbers
    weights = parameters(config.model)
    if isinstance(stage, StepStage):
        bits = config.quant.weight_bits if WEIGHTS in stage.step.quantizes or stage.before else UNTOUCHED
        return weights * bits / 8
    sizes = {
        "calibration": 4.0 * config.calib.timesteps * config.calib.rows * branches * (image + numbers),
        "samples": float(config.protocol.n * image),
        "features": 4.0 * config.protocol.n * 100,
    }
    return sizes.get(stage.name, 0.0)
