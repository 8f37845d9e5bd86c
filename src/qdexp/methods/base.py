"""Steps of methods: the base class, and the work that a step gets.

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
"""The beginning of the options of steps."""
BOTH = frozenset({WEIGHTS, ACTIVATIONS})
ROTATIONS, BRANCHES = "rotations", "low-rank branches"
MADE = frozenset({ROTATIONS, BRANCHES})
"""The parts that steps make which change nothing in full precision, but have to come after others."""


@dataclass(kw_only=True)
class Work:
    """The network and the data that a step works on.

    Attributes:
        network: The network as the step before left it, in eval mode on the device; to be changed in place.
        quant: The bits and grids, without those that the step's ``bits`` leave out.
        model: The config of the model.
        example: One row that the network can be called with.
        batches: The calibration set, in batches of at most ``sampling.batch`` rows; empty for a step that is not
            ``calibrated``.
        least: The number of rows among which one of each timestep and guidance branch is: every prefix of the set is
            stratified.
        seed: The seed of everything random; torch's global generator is seeded with it before the step.
        memory: The places where the rows of a step that learns block by block may lie.
        folder: The folder where a long step keeps finished parts, in hidden files; a killed step finds them there again.
        build: A function that makes the full-precision network anew.
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
        """The adapter, which knows the network's architecture."""
        return Adapter(self.network, self.example)

    @cached_property
    def plan(self) -> dict[str, LayerBits]:
        """The bits of every layer that can be quantized, in execution order."""
        return plan_bits(self.network, self.adapter.layers, **self.quant.by_layer)

    def seed_of(self, layer: str) -> int:
        """The seed of what is random in one layer: it depends on the cell's seed and the layer's name alone."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {layer}".encode()).digest()[:4], "big")

    def first(self, rows: int | None) -> list[Batch]:
        """Return the first rows of the calibration set, batch by batch.

        Args:
            rows: The number of rows, at least ``least``; None: all.
        """
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
    """Base class of the steps of a method. The options of a subclass are its fields.

    All fields are part of the key, except those marked ``WITHOUT_EFFECT``. A mistake in them is raised as ValueError by
    ``__post_init__``.

    Attributes:
        bits: The bits and grids that the result depends on (WEIGHTS, ACTIVATIONS). Cells that differ in others alone share the
            result; where none of these is quantized, the step is left out.
        quantizes: The parts of the network that are quantized, or made (ROTATIONS, BRANCHES), after the step.
        needs: The parts that have to be quantized before it.
        precedes: The parts that must not be quantized, or made, before it.
        calibrated: Whether it reads the calibration set.
        from_weights: Whether it starts from the weights of the model, where it is the first step.
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
        """Change ``work.network`` in place.

        Args:
            work: The network, the calibration set and everything else that the step may use.
        """

    def applies(self, quant: Quant) -> bool:
        """Return whether the step does anything in cells with the format ``quant``; else it is left out."""
        return not self.bits or bool(self.bits & quant.touched)

    def depends_on(self, quant: Quant) -> Quant:
        """Return the part of ``quant`` that the result depends on, with the rest at values that are the same for all cells."""
        return quant.only(self.bits)

    def check(self, config: Config) -> None:
        """Check whether the step can be taken in this cell. Called before any work.

        Args:
            config: The config of the cell.

        Raises:
            qdexp.errors.UserError: The step cannot be taken; the message is one line that names the option and the fix.
            ValueError: The same, about one of the step's own options.
        """
        return

    def files(self, config: Config) -> dict[str, Path]:
        """Return the files outside the store that the step reads, by their roles; their content is part of the key.

        Raises:
            ValueError: A file is missing.
        """
        return {}

    def passes(self, rows: int) -> float:
        """Estimate how many rows go through the network, with a backward pass counted twice.

        Args:
            rows: The number of rows of the calibration set.
        """
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
    """The range estimator of steps that name none: the one of Q-Diffusion's code."""
    return {"_target_": "qdexp.quant.ranges.NormSearch", "p": 2.4}


def instance_of(target: Mapping[str, Any], kind: type[Any], option: str) -> Any:
    """Make the object of a ``_target_`` among a step's options. ValueError where it cannot be made, or is no ``kind``."""
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
