"""What a step of a method is, and what it gets.

A method is a list of steps (``quantizer.steps``). The first one gets the full-precision network, each further one the network
as the step before left it; after the last one all is quantized that ``quant`` asks for. ``quant`` says which grids are computed
with, a step how their constants are found, or how the network is changed before.

The result of every step is kept, as a packed checkpoint: cells whose first steps are equal share them, and a sweep over an
option of one step computes that step again and those after it, nothing before.

A step of your own is a frozen dataclass that extends ``Step``, in a file on the Python path; its fields are its options.
"""

import hashlib
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from qdexp.config import ACTIVATIONS, WEIGHTS, Config, Memory, Model, Quant
from qdexp.config.checks import STRICT
from qdexp.quant.adapter import Adapter
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.network import LayerBits, plan_bits

OPTION = "quantizer.steps"
"""What the options of steps begin with."""
BOTH = frozenset({WEIGHTS, ACTIVATIONS})
ROTATIONS, BRANCHES = "rotations", "low-rank branches"
MADE = frozenset({ROTATIONS, BRANCHES})
"""What steps make that change nothing in full precision, but have to come after others."""


@dataclass(kw_only=True)
class Work:
    """What a step works on.

    Attributes:
        network: The network as the step before left it, in eval mode on the device; to be changed in place.
        quant: The bits and grids, but for those that the step's ``bits`` leave out.
        model: What the network was built from.
        example: One row that the network can be called with.
        batches: The calibration set, at most ``sampling.batch`` rows each; empty for a step that is not ``calibrated``.
        least: Rows of which one at least is of each timestep and guidance branch: every prefix is stratified.
        seed: Of all that is random; torch's global generator is seeded with it before the step.
        memory: Where the rows of a step that learns block by block may lie.
        folder: Where a long step keeps what it has finished, in hidden files: a killed one finds them there again.
        build: Makes the full-precision network anew.
    """

    network: nn.Module
    quant: Quant
    model: Model
    example: Batch
    batches: Sequence[Batch]
    least: int
    seed: int
    folder: Path
    build: Callable[[], nn.Module]
    memory: Memory = field(default_factory=Memory)

    @cached_property
    def adapter(self) -> Adapter:
        """What there is to know about the network's architecture."""
        return Adapter(self.network, self.example)

    @cached_property
    def plan(self) -> dict[str, LayerBits]:
        """The bits of every layer that can be quantized, in execution order."""
        return plan_bits(self.network, self.adapter.layers, **self.quant.by_layer)

    def seed_of(self, layer: str) -> int:
        """Of what is random in one layer: it depends on the seed and the layer's name alone."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {layer}".encode()).digest()[:4], "big")

    def first(self, rows: int | None) -> list[Batch]:
        """The first ``rows`` of the calibration set (None: all), ``least`` at least."""
        left = None if rows is None else max(rows, self.least)
        found: list[Batch] = []
        for batch in self.batches:
            if left is not None and left < len(batch[0]):
                return [*found, first_row(batch, left)] if left else found
            found.append(batch)
            left = None if left is None else left - len(batch[0])
        return found


@dataclass(frozen=True, kw_only=True)
class Step(ABC):
    """One step of a method. The options of a subclass are its fields: all are part of the key, but for those marked
    ``WITHOUT_EFFECT``. A mistake in them is raised as ValueError by ``__post_init__``.

    Attributes:
        bits: Whose bits and grids it depends on (WEIGHTS, ACTIVATIONS): cells that differ in others alone share its result, and
            where none of these is quantized it is left out.
        quantizes: What of the network is quantized, or made (ROTATIONS, BRANCHES), once it is done.
        needs: What has to be quantized before it.
        precedes: What must not be quantized, or made, before it.
        calibrated: Whether it reads the calibration set.
        from_weights: Whether it starts from the weights of the model, where it is the first.
        quick: Whether, on a cluster, it takes no job of its own.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    bits: ClassVar[frozenset[str]] = BOTH
    quantizes: ClassVar[frozenset[str]] = frozenset()
    needs: ClassVar[frozenset[str]] = frozenset()
    precedes: ClassVar[frozenset[str]] = frozenset()
    calibrated: ClassVar[bool] = True
    from_weights: ClassVar[bool] = True
    quick: ClassVar[bool] = False

    @abstractmethod
    def apply(self, work: Work) -> None:
        """Changes ``work.network`` in place."""

    def applies(self, quant: Quant) -> bool:
        """Whether it does anything in such a cell; else it is left out."""
        return not self.bits or bool(self.bits & quant.touched)

    def depends_on(self, quant: Quant) -> Quant:
        """What of ``quant`` its result depends on, the rest at values that are the same for all cells."""
        return quant.only(self.bits)

    def check(self, config: Config) -> None:
        """Raises UserError or ValueError for what it cannot do in this cell: called before any work."""
        return

    def files(self, config: Config) -> dict[str, Path]:
        """The files outside the store that it reads, by their roles. Raises ValueError where one is missing."""
        return {}

    def passes(self, rows: int) -> float:
        """About how many rows go through the network, a backward pass counted twice; ``rows``: of the calibration set."""
        return float(rows if self.calibrated else 1)


@dataclass(frozen=True)
class NamedStep:
    """A step in its slot; ``target``: the ``_target_`` that it was made from."""

    slot: str
    target: str
    step: Step

    @property
    def option(self) -> str:
        return f"{OPTION}.{self.slot}"


def norm_search() -> dict[str, Any]:
    """The range estimator of steps that are told none: the one of Q-Diffusion's code."""
    return {"_target_": "qdexp.quant.ranges.NormSearch", "p": 2.4}


def instance_of(target: Mapping[str, Any], kind: type[Any], option: str) -> Any:
    """What a ``_target_`` among a step's options makes. ValueError where it cannot be made, or is no ``kind``."""
    from hydra.errors import InstantiationException
    from hydra.utils import instantiate

    fix = f"name a subclass of {kind.__module__}.{kind.__qualname__}"
    if "_target_" not in target:
        raise ValueError(f"{option}={dict(target)}: {fix} as _target_")
    try:
        made = instantiate(target)
    except InstantiationException as error:
        raise ValueError(f"{option}: {' '.join(str(error).split())}; {fix}, and options that it has") from error
    if not isinstance(made, kind):
        raise ValueError(f"{option}._target_={target['_target_']}: {fix}")
    return made


def rows_left(config: Config, heldout: int) -> None:
    """Raises ValueError where the held-out rows leave none to learn from."""
    rows = config.calib.timesteps * config.calib.rows
    if heldout >= rows:
        raise ValueError(f"heldout={heldout}: leaves none of the {rows} rows of the calibration set to learn from; lower it "
                         f"(recon.heldout), or raise calib.rows")  # fmt: skip
