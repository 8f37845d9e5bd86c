"""Options of how a network is quantized: bit-widths, quantizer, reconstruction, calibration rows."""

import math
from dataclasses import dataclass, field
from typing import Any

from qdexp.config.checks import NAMES_CODE, ORDERED, UNTOUCHED, WITHOUT_EFFECT, Target, require, require_bits


@dataclass
class Quant:
    """Bit-widths only. ``layers`` maps a name pattern to ``{weight_bits, act_bits}``.

    ``first_last_bits``: of the first and the last layer, where the others are quantized; null: as the others.
    """

    weight_bits: int
    act_bits: int
    softmax_bits: int
    first_last_bits: int | None
    layers: dict[str, dict[str, int]] | None = field(default=None, metadata=ORDERED)  # later patterns win

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
        return f"w{self.weight_bits}a{self.act_bits}" + ("+layers" if self.layers else "")


@dataclass
class WeightScheme:
    """How weights are quantized; the bits come from ``quant``."""

    granularity: str
    symmetric: bool
    range: Target

    def __post_init__(self) -> None:
        known = ("per_tensor", "per_channel")
        require(self.granularity in known, "quantizer.weight.granularity", self.granularity, f"choose {' or '.join(known)}")
        require("_target_" in self.range, "quantizer.weight.range", self.range, "name the range estimator as _target_")


@dataclass
class ActScheme:
    """How activations are quantized, always per tensor; the bits come from ``quant``.

    Ranges are estimated on the first ``rows`` rows of the calibration set, which are stratified over its timesteps, but on one
    row of each at least; null: on all.
    ``learned``: the scales are then learned block by block.
    """

    symmetric: bool
    range: Target
    rows: int | None = None
    learned: bool = False

    def __post_init__(self) -> None:
        require("_target_" in self.range, "quantizer.act.range", self.range, "name the range estimator as _target_")
        enough = self.rows is None or self.rows > 0
        require(enough, "quantizer.act.rows", self.rows, "choose at least 1, or null for all rows")


@dataclass
class Quantizer:
    """How ranges and rounding are found; under the name ``none`` nothing is quantized.

    ``split`` says which convolutions of a concatenation are quantized in its parts: those that read it directly (skip), or also
    those that read it through norms and nonlinearities (skip+conv1).
    ``rounding: released``: all is as in ``file``, a checkpoint of Q-Diffusion's authors; the other options do nothing.
    """

    name: str = field(metadata=WITHOUT_EFFECT)
    weight: WeightScheme
    act: ActScheme
    rounding: str = field(metadata=NAMES_CODE)
    split: str = "off"
    file: str | None = field(default=None, metadata=WITHOUT_EFFECT)  # what is in it counts

    def __post_init__(self) -> None:
        fix = 'choose "off" (YAML needs the quotes, or reads False), skip or skip+conv1'
        require(self.split in ("off", "skip", "skip+conv1"), "quantizer.split", self.split, fix)
        read = self.file is None or self.released
        require(read, "quantizer.file", self.file, "only method=released reads it; add that, or leave the file out")

    @property
    def released(self) -> bool:
        """Whether the network comes quantized, out of ``file``."""
        return self.rounding == "released"

    @property
    def learns_rounding(self) -> bool:
        """Whether weight rounding goes block by block, by what the calibration rows tell."""
        return self.rounding in ("adaround", "gptq")

    @property
    def learns(self) -> bool:
        """Whether anything is."""
        return self.learns_rounding or self.act.learned


@dataclass
class WeightLearning:
    """How weight rounding is learned: ``iterations`` of Adam at ``rate`` for each block.

    After the fraction ``warmup`` of the iterations the regulariser sets in; its exponent falls from ``beta[0]`` to ``beta[1]``.
    ``balanced``: the loss is relative to that of nearest rounding and ``regulariser`` weighs the mean over the weights, so that
    one value fits blocks of every size; else it weighs the sum over the weights, beside an absolute loss, as in Q-Diffusion's
    code.
    ``start``: from the weights themselves, whose hard rounding is ``nearest``, or from what ``gptq`` gives.
    """

    start: str
    iterations: int
    rate: float
    regulariser: float
    warmup: float
    beta: list[float]
    balanced: bool

    def __post_init__(self) -> None:
        option = "recon.weights"
        require(self.start in ("nearest", "gptq"), f"{option}.start", self.start, "choose nearest or gptq")
        require(self.iterations > 0, f"{option}.iterations", self.iterations, "choose at least 1")
        require(0 < self.rate < math.inf, f"{option}.rate", self.rate, "choose a learning rate above 0")
        require(0 <= self.regulariser < math.inf, f"{option}.regulariser", self.regulariser, "choose 0 or more")
        require(
            0 <= self.warmup < 1, f"{option}.warmup", self.warmup, "choose a fraction of the iterations, 0 or more, below 1"
        )
        falls = len(self.beta) == 2 and self.beta[0] >= self.beta[1] >= 1
        require(falls, f"{option}.beta", self.beta, "give [start, end], start >= end >= 1")


@dataclass
class ScaleLearning:
    """How activation scales are learned: ``iterations`` of Adam on log s for each block, the rate falling to 0 as a cosine.

    The loss is the sum of |error|^``power`` over that of |target|^``power``.
    """

    iterations: int
    rate: float
    power: float

    def __post_init__(self) -> None:
        option = "recon.scales"
        require(self.iterations > 0, f"{option}.iterations", self.iterations, "choose at least 1")
        require(0 < self.rate < math.inf, f"{option}.rate", self.rate, "choose a learning rate above 0")
        require(1 <= self.power < math.inf, f"{option}.power", self.power, "choose 1 or more; 2 is the mean squared error")


@dataclass(kw_only=True)
class BlockLearning:
    """Block-wise reconstruction: batches of ``batch`` rows of the calibration set.

    The set's last ``heldout`` rows are not learned from: they tell whether a block has become better than it was.
    ``weights``, ``scales``: how each is learned, None where it is not.
    ``cache_gb``: how many GB (10^9 bytes) of the rows' activations are held in memory; the rest lies in files. null: all are.
    ``precision``: what the iterations compute in, and keep the rows in that they learn from; ``compile``: whether
    torch.compile translates each kind of block for them.
    """

    batch: int
    heldout: int
    weights: WeightLearning | None
    scales: ScaleLearning | None
    cache_gb: float | None = field(default=None, metadata=WITHOUT_EFFECT)
    precision: str = "float32"
    compile: bool = False

    def __post_init__(self) -> None:
        require(self.batch > 0, "recon.batch", self.batch, "choose at least 1")
        require(self.heldout > 0, "recon.heldout", self.heldout, "choose at least 1")
        some = self.cache_gb is None or 0 < self.cache_gb < math.inf
        require(some, "recon.cache_gb", self.cache_gb, "choose more than 0, or null for all that there is")
        require(self.precision in ("float32", "bfloat16"), "recon.precision", self.precision, "choose float32 or bfloat16")


@dataclass(kw_only=True)
class Recon(BlockLearning):
    """How quantizers that learn do so; what of it one of them depends on is a ``BlockLearning``."""

    name: str
    weights: WeightLearning
    scales: ScaleLearning

    def of_weights(self, rounding: str) -> BlockLearning:
        """What learning the weights' ``rounding`` depends on; GPTQ alone has no iterations."""
        if rounding == "adaround":
            return self._learning(weights=self.weights, precision=self.precision, compile=self.compile)
        return self._learning()

    def of_scales(self) -> BlockLearning:
        """What learning the activations' scales depends on."""
        return self._learning(scales=self.scales, precision=self.precision, compile=self.compile)

    def _learning(self, **chosen: Any) -> BlockLearning:
        rows = {"batch": self.batch, "heldout": self.heldout, "cache_gb": self.cache_gb}
        return BlockLearning(**{"weights": None, "scales": None, **rows, **chosen})


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
