"""Options that steps which learn block by block share. The defaults are those of ``recon=fast``."""

from dataclasses import dataclass, field
from typing import Annotated, Literal

from annotated_types import Ge, Gt, Lt

from qdexp.config.checks import Finite, Name, Positive
from qdexp.config.memory import Batch


@dataclass(frozen=True, kw_only=True)
class BlockWise:
    """Learning judged by held-out rows: a block that has not become better on them stays as it was.

    Attributes:
        heldout: The last rows of the calibration set, which are not learned from.
    """

    heldout: Positive = 64


@dataclass(frozen=True, kw_only=True)
class Learning(BlockWise):
    """Learning by iterations.

    Attributes:
        batch: Rows per iteration; ``auto``: by the model.
        precision: The type that iterations compute in, and that the rows they read are kept in.
        compile: Whether torch.compile translates each kind of block for the iterations.
    """

    batch: Positive = 8
    precision: Literal["float32", "bfloat16"] = "float32"
    compile: bool = False


@dataclass(frozen=True, kw_only=True)
class Iterations(Learning):
    """Iterations of Adam for each block.

    Attributes:
        iterations: The number of iterations per block.
        rate: The learning rate.
    """

    iterations: Positive
    rate: Annotated[float, Gt(0), Finite]


@dataclass(frozen=True, kw_only=True)
class WeightOptions:
    """Options of learned rounding (AdaRound).

    Attributes:
        start: Where learning starts: the weights themselves, whose hard rounding is ``nearest``, or what ``gptq`` gives.
        iterations: The number of iterations per block.
        rate: The learning rate.
        regulariser: The weight of the regulariser, which drives each choice to up or down.
        warmup: The fraction of the iterations without regulariser.
        beta: The exponent of the regulariser at the start and at the end.
        balanced: Whether the loss is relative to that of nearest rounding and the regulariser a mean over the weights, so that
            one value fits blocks of every size; else both are sums, as in Q-Diffusion's code.
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
    """The options of learned rounding."""


@dataclass(frozen=True, kw_only=True)
class ScaleOptions:
    """Options of learned activation scales.

    Attributes:
        iterations: The number of iterations on log s per block; 0: nothing is learned, and the step is left out.
        rate: The learning rate at the start; it falls to 0 as a cosine.
        power: The exponent p of the loss, the sum of |error|^p over that of |target|^p.
    """

    iterations: Annotated[int, Ge(0)] = 50
    rate: Annotated[float, Gt(0), Finite] = 0.01
    power: Annotated[float, Ge(1), Finite] = 2.0


@dataclass(frozen=True, kw_only=True)
class ScaleLearning(ScaleOptions, Iterations):
    """The options of learned scales."""


@dataclass(frozen=True, kw_only=True)
class Recon(Learning):
    """Options of the steps that learn block by block, where the step itself says nothing else.

    Attributes:
        name: The choice of ``recon``.
        range_p: The exponent of the errors for which activation ranges are searched.
        weights: Options of learned rounding.
        scales: Options of learned activation scales.
    """

    name: Name
    batch: Batch = 8
    range_p: Annotated[float, Gt(0), Finite] = 2.0
    weights: WeightOptions
    scales: ScaleOptions
