"""How steps learn block by block: options that they share. The defaults are those of ``recon=fast``."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from qdexp.config.checks import Finite, Name, Positive
from qdexp.config.memory import Batch


@dataclass(frozen=True, kw_only=True)
class BlockWise:
    """The last ``heldout`` rows of the calibration set are not learned from: they tell whether a block has become better than
    it was, and one that has not stays as it was."""

    heldout: Positive = 64


@dataclass(frozen=True, kw_only=True)
class Learning(BlockWise):
    """``batch``: rows of an iteration. ``precision``: what iterations compute in, and keep the rows in that they learn from.
    ``compile``: whether torch.compile translates each kind of block for them."""

    batch: Positive = 8
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class Iterations(Learning):
    """``iterations`` of Adam at ``rate`` for each block."""

    iterations: Positive
    rate: Annotated[float, Gt(0), Finite]


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """After the fraction ``warmup`` of the iterations the regulariser sets in; its exponent falls from ``beta[0]`` to
    ``beta[1]``.

    ``balanced``: the loss is relative to that of nearest rounding and ``regulariser`` weighs the mean over the weights, so that
    one value fits blocks of every size; else it weighs the sum over the weights, beside an absolute loss, as in Q-Diffusion's
    code.
    ``start``: from the weights themselves, whose hard rounding is ``nearest``, or from what ``gptq`` gives.
    """

    start: Literal["nearest", "gptq"] = "gptq"
    iterations: Positive = 200
    rate: Annotated[float, Gt(0), Finite] = 0.1
    regulariser: Annotated[float, Ge(0), Finite] = 1000.0
    warmup: Annotated[float, Ge(0), Lt(1)] = 0.2
    beta: list[float] = field(default_factory=lambda: [20.0, 2.0])
    balanced: bool = True

    def __post_init__(self) -> None:
        if not (len(self.beta) == 2 and self.beta[0] >= self.beta[1] >= 1):
            raise ValueError(f"beta={self.beta}: give [start, end], start >= end >= 1")


@dataclass(frozen=True, kw_only=True)
class WeightLearning(WeightOptions, Iterations):
    """How rounding is learned."""


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """The iterations are on log s, their rate falling to 0 as a cosine; the loss is the sum of |error|^``power`` over that of
    |target|^``power``. 0 ``iterations``: nothing is learned, and the step is left out."""

    iterations: Annotated[int, Ge(0)] = 50
    rate: Annotated[float, Gt(0), Finite] = 0.01
    power: Annotated[float, Ge(1), Finite] = 2.0


@dataclass(frozen=True, kw_only=True)
class ScaleLearning(ScaleOptions, Iterations):
    """How scales are learned."""


@dataclass(frozen=True, kw_only=True)
class Recon(Learning):
    """What the steps that learn block by block take for their options where nothing else is said. ``range_p``: the power of the
    errors for which they have activation ranges searched."""

    name: Name
    batch: Batch = 8
    range_p: Annotated[float, Gt(0), Finite] = 2.0
    weights: WeightOptions
    scales: ScaleOptions
