"""The whole configuration as typed values. Every mistake a user can make in an option is named here, before any work starts.

``Config.of(cfg)`` turns what Hydra composed into these dataclasses; each checks itself when it is made.
"""

import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qdexp.errors import UserError
from qdexp.paths import ZOO

Target = dict[str, Any]
"""A Hydra node with ``_target_``: what is built, and with which arguments."""

UNTOUCHED = 32
"""The bit-width that means: leave it in full precision."""

RANDOM = "random"
"""In place of a file of weights: the architecture with seeded random numbers, to rehearse a run."""


def register_resolvers() -> None:
    """``${zoo:PATH}`` in a config is a file that ships with qdexp."""
    OmegaConf.register_new_resolver("zoo", lambda path: str(ZOO / path), replace=True)


register_resolvers()


def _require(ok: bool, option: str, value: object, mend: str) -> None:
    if not ok:
        raise UserError(f"{option}={value}: {mend}")


def _bits(option: str, value: int, low: int, high: int) -> None:
    _require(value in (*range(low, high + 1), UNTOUCHED), option, value, f"choose {low} to {high}, or 32 to leave it untouched")


@dataclass
class FirstStage:
    """The autoencoder of a latent model: images are ``network.decode(latents / scale + shift)``.

    ``weights`` and ``subfolder`` as in ``Model``. A CompVis checkpoint that holds a scale of its own wins over ``scale``.
    """

    weights: str
    network: Target
    scale: float = 1.0
    shift: float = 0.0
    subfolder: str = "vae"

    def __post_init__(self) -> None:
        option = "model.first_stage"
        _require("_target_" in self.network, f"{option}.network", self.network, "name the network's class as _target_")
        _require(self.scale > 0, f"{option}.scale", self.scale, "choose a number above 0")


@dataclass
class Model:
    """``network`` builds the architecture, ``weights`` fill it, ``schedule`` is its diffusers noise schedule.

    ``weights``: a file, a diffusers folder, a name on the Hugging Face hub, or ``random``; ``subfolder``: where they lie in a
    folder; ``publisher``: where they can be had. ``shape`` is that of x_t: of latents where there is a first stage.
    ``condition``: what the network is asked for beside x_t and t; null for an unconditional one.
    """

    name: str
    weights: str
    shape: list[int]
    network: Target
    schedule: dict[str, Any]
    subfolder: str = ""
    publisher: str | None = None
    first_stage: FirstStage | None = None
    condition: Target | None = None

    def __post_init__(self) -> None:
        if self.condition is not None:
            named = "_target_" in self.condition
            _require(named, "model.condition", self.condition, "name the condition's class as _target_")
        _require(len(self.shape) == 3 and min(self.shape) > 0, "model.shape", self.shape, "give [channels, height, width]")
        _require("_target_" in self.network, "model.network", self.network, "name the network's class as _target_")


@dataclass
class Quant:
    """Bit-widths only. ``layers`` maps a name pattern to ``{weight_bits, act_bits}``."""

    weight_bits: int
    act_bits: int
    softmax_bits: int
    first_last_bits: int
    layers: dict[str, dict[str, int]] | None = None

    def __post_init__(self) -> None:
        _bits("quant.weight_bits", self.weight_bits, 2, 8)
        _bits("quant.act_bits", self.act_bits, 4, 8)
        _bits("quant.softmax_bits", self.softmax_bits, 4, 16)
        _bits("quant.first_last_bits", self.first_last_bits, 2, 8)
        for pattern, bits in (self.layers or {}).items():
            unknown = set(bits) - {"weight_bits", "act_bits"}
            _require(not unknown, f"quant.layers.{pattern}", sorted(unknown), "only weight_bits and act_bits can be set")
            _bits(f"quant.layers.{pattern}.weight_bits", bits.get("weight_bits", UNTOUCHED), 2, 8)
            _bits(f"quant.layers.{pattern}.act_bits", bits.get("act_bits", UNTOUCHED), 4, 8)

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
        _require(self.granularity in known, "quantizer.weight.granularity", self.granularity, f"choose {' or '.join(known)}")
        _require("_target_" in self.range, "quantizer.weight.range", self.range, "name the range estimator as _target_")


@dataclass
class ActScheme:
    """How activations are quantized, always per tensor; the bits come from ``quant``.

    Ranges are estimated on the first ``rows`` rows of the calibration set, which are stratified over its timesteps; null: all.
    ``learned``: the scales are then learned block by block.
    """

    symmetric: bool
    range: Target
    rows: int | None = None
    learned: bool = False

    def __post_init__(self) -> None:
        _require("_target_" in self.range, "quantizer.act.range", self.range, "name the range estimator as _target_")
        enough = self.rows is None or self.rows > 0
        _require(enough, "quantizer.act.rows", self.rows, "choose at least 1, or null for all rows")


@dataclass
class Quantizer:
    """How ranges and rounding are found; under the name ``none`` nothing is quantized.

    ``split`` says which convolutions of a concatenation are quantized in its parts: those that read it directly (skip), or also
    those that read it through norms and nonlinearities (skip+conv1).
    """

    name: str
    weight: WeightScheme
    act: ActScheme
    rounding: str
    split: str = "off"

    def __post_init__(self) -> None:
        mend = 'choose "off" (YAML needs the quotes, or reads False), skip or skip+conv1'
        _require(self.split in ("off", "skip", "skip+conv1"), "quantizer.split", self.split, mend)

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
    ``balanced``: the loss is relative to the start's and ``regulariser`` weighs the mean over the weights, so that one value
    fits blocks of every size; else it weighs the sum over the weights, beside an absolute loss, as in Q-Diffusion's code.
    """

    iterations: int
    rate: float
    regulariser: float
    warmup: float
    beta: list[float]
    balanced: bool

    def __post_init__(self) -> None:
        option = "recon.weights"
        _require(self.iterations > 0, f"{option}.iterations", self.iterations, "choose at least 1")
        _require(self.rate > 0, f"{option}.rate", self.rate, "choose a learning rate above 0")
        _require(self.regulariser >= 0, f"{option}.regulariser", self.regulariser, "choose 0 or more")
        _require(
            0 <= self.warmup < 1, f"{option}.warmup", self.warmup, "choose a fraction of the iterations, 0 or more, below 1"
        )
        falls = len(self.beta) == 2 and self.beta[0] >= self.beta[1] >= 1
        _require(falls, f"{option}.beta", self.beta, "give [start, end], start >= end >= 1")


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
        _require(self.iterations > 0, f"{option}.iterations", self.iterations, "choose at least 1")
        _require(self.rate > 0, f"{option}.rate", self.rate, "choose a learning rate above 0")
        _require(self.power >= 1, f"{option}.power", self.power, "choose 1 or more; 2 is the mean squared error")


@dataclass
class Recon:
    """Block reconstruction, for quantizers that learn: batches of ``batch`` rows of the calibration set.

    The set's last ``heldout`` rows are not learned from: they tell whether a block has become better than it was.
    ``cache_gb``: how many GB (10^9 bytes) of the rows' activations are held in memory; the rest lies in files. null: all are.
    """

    name: str
    batch: int
    heldout: int
    weights: WeightLearning
    scales: ScaleLearning
    cache_gb: float | None = None

    def __post_init__(self) -> None:
        _require(self.batch > 0, "recon.batch", self.batch, "choose at least 1")
        _require(self.heldout > 0, "recon.heldout", self.heldout, "choose at least 1")
        some = self.cache_gb is None or 0 < self.cache_gb < math.inf
        _require(some, "recon.cache_gb", self.cache_gb, "choose more than 0, or null for all that there is")


@dataclass
class Calib:
    """``rows`` samples at each of ``timesteps`` timesteps, chosen by ``strategy``."""

    name: str
    timesteps: int
    rows: int
    strategy: Target

    def __post_init__(self) -> None:
        _require(self.timesteps > 0, "calib.timesteps", self.timesteps, "choose at least 1")
        _require(self.rows > 0, "calib.rows", self.rows, "choose at least 1")
        _require("_target_" in self.strategy, "calib.strategy", self.strategy, "name the strategy's function as _target_")


@dataclass
class Trajectory:
    samples: int

    def __post_init__(self) -> None:
        _require(self.samples > 0, "trajectory.samples", self.samples, "choose at least 1")


@dataclass
class Protocol:
    """How a number is measured. Numbers of different protocols are never put into one comparison.

    Of conditional models: ``classes`` (null: all) are drawn in turn, with ``guidance`` (1: none).
    """

    name: str
    n: int
    noise_seed: int
    heldout: int
    steps: int
    scheduler: Target
    extractor: str
    reference: str
    guidance: float = 1.0
    classes: list[int] | None = None
    extractor_weights: str | None = None

    def __post_init__(self) -> None:
        _require(self.guidance >= 0, "protocol.guidance", self.guidance, "choose 1 for none, or more")
        _require(self.classes != [], "protocol.classes", self.classes, "name at least one, or null for all")
        _require(self.n >= 10, "protocol.n", self.n, "the scores need at least 10 images; 1,000 and more give KID too")
        _require(0 <= self.noise_seed < 2**32, "protocol.noise_seed", self.noise_seed, "choose 0 to 2^32 - 1")
        _require(self.heldout > 0, "protocol.heldout", self.heldout, "choose at least 1")
        _require(self.steps > 0, "protocol.steps", self.steps, "choose at least 1")
        _require("_target_" in self.scheduler, "protocol.scheduler", self.scheduler, "name the scheduler's class as _target_")


@dataclass
class Sampling:
    batch: int
    channels_last: bool

    def __post_init__(self) -> None:
        _require(self.batch > 0, "sampling.batch", self.batch, "choose at least 1")


@dataclass
class Inspection:
    """On how many ``rows`` the insides of the networks are looked at; 0: not at all.

    ``lpips``: the file of the backbone's weights with which LPIPS to full precision is measured; None: it is not.
    """

    rows: int
    lpips: str | None = None

    def __post_init__(self) -> None:
        _require(self.rows >= 0, "inspection.rows", self.rows, "choose 0 (none) or more")


@dataclass
class Tracker:
    name: str
    project: str = "qdexp"
    entity: str | None = None
    mode: str = "offline"

    def __post_init__(self) -> None:
        modes = ("offline", "online")
        _require(self.mode in modes, "tracker.mode", self.mode, f"choose one of {', '.join(modes)}")


@dataclass
class Resources:
    """What one job asks for; ``memory_gb`` null: what the cluster gives by itself."""

    minutes: int = 60
    gpus: int = 0
    cpus: int = 1
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        _require(self.minutes > 0, "cluster.stages.*.minutes", self.minutes, "choose at least 1")
        _require(self.gpus >= 0, "cluster.stages.*.gpus", self.gpus, "choose 0 or more")
        _require(self.cpus > 0, "cluster.stages.*.cpus", self.cpus, "choose at least 1")


@dataclass
class Cluster:
    """Where jobs go. None of it changes a result, or its key.

    ``device``: what its machines compute on. ``parts``: jobs that draw the images of one cell together. ``parallel``: jobs of
    one kind that run at once. ``stages``: resources by stage; ``default`` is that of all others. ``restarts``: how often a job
    is queued again that reached its time limit. ``options``: further options of sbatch.
    """

    name: str
    device: str
    parts: int
    parallel: int
    restarts: int
    stages: dict[str, Resources]
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = ("auto", "cpu", "cuda")
        _require(self.device in known, "cluster.device", self.device, f"choose one of {', '.join(known)}")
        for option in ("parts", "parallel"):
            _require(getattr(self, option) > 0, f"cluster.{option}", getattr(self, option), "choose at least 1")
        _require("default" in self.stages, "cluster.stages", sorted(self.stages), "add the resources of default")

    def resources(self, stage: str) -> Resources:
        return self.stages.get(stage, self.stages["default"])


@dataclass
class Config:
    """One cell."""

    model: Model
    quant: Quant
    quantizer: Quantizer
    calib: Calib
    recon: Recon
    protocol: Protocol
    tracker: Tracker
    cluster: Cluster
    method: str
    trajectory: Trajectory
    sampling: Sampling
    inspection: Inspection
    out: str
    sweep: str
    seed: int
    device: str

    def __post_init__(self) -> None:
        devices = ("auto", "cpu", "cuda")
        _require(self.device in devices, "device", self.device, f"choose one of {', '.join(devices)}")
        _require(self.seed >= 0, "seed", self.seed, "choose 0 or more")
        plain = self.sweep not in ("", "..") and Path(self.sweep).name == self.sweep
        _require(plain, "sweep", self.sweep, "give a plain name, without slashes")

    @staticmethod
    def of(cfg: DictConfig) -> "Config":
        """The typed form of what Hydra composed. Raises UserError where an option has the wrong type, name or value."""
        try:
            plain = OmegaConf.create(OmegaConf.to_container(cfg, resolve=True))
            config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(Config), plain))
        except OmegaConfBaseException as error:
            option = getattr(error, "full_key", None) or "config"
            raise UserError(f"{option}: {str(error).splitlines()[0]}") from error
        assert isinstance(config, Config)
        return config

    @property
    def full_precision(self) -> bool:
        """True where nothing is quantized, whatever the other axes say: such cells are one and the same."""
        untouched = self.quant.weight_bits == self.quant.act_bits == UNTOUCHED and not self.quant.layers
        return untouched or self.quantizer.name == "none"
