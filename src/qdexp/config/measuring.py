"""Options of what is measured, and how: trajectories, protocol, sampling, what is looked at, where records go."""

import math
from dataclasses import dataclass

from qdexp.config.checks import NO_EXTRACTOR, Target, require


@dataclass
class Trajectory:
    """``prompts``: a file of them for models that are asked so; None: those of the protocol, from the last one back."""

    samples: int
    prompts: str | None = None

    def __post_init__(self) -> None:
        require(self.samples > 0, "trajectory.samples", self.samples, "choose at least 1")


@dataclass(kw_only=True)
class SamplerOptions:
    """From noise to image: ``steps`` of a ``scheduler``, with classifier-free ``guidance`` (1: none)."""

    steps: int
    scheduler: Target
    guidance: float = 1.0

    def __post_init__(self) -> None:
        require(0 <= self.guidance < math.inf, "protocol.guidance", self.guidance, "choose 1 for none, or more")
        require(self.steps > 0, "protocol.steps", self.steps, "choose at least 1")
        require("_target_" in self.scheduler, "protocol.scheduler", self.scheduler, "name the scheduler's class as _target_")

    @property
    def branches(self) -> int:
        """How often the network is called at each of the sampler's calls: with guidance for the empty condition too."""
        return 1 if self.guidance == 1 else 2


@dataclass(kw_only=True)
class Protocol(SamplerOptions):
    """How a number is measured. Numbers of different protocols are never put into one comparison.

    ``pixels``: how an image becomes one of 8 bits, by ``round`` or by ``truncate``.
    ``extractor``: of the features in which images are compared with ``reference``; "none": they are not.
    Of conditional models: ``classes`` (null: all) or the ``prompts`` in a file are drawn in turn, with ``guidance`` (1: none).
    ``clip``: the folder of a CLIP model that scores how well images show their prompts; None: they are not scored.
    """

    name: str
    n: int
    noise_seed: int
    heldout: int
    extractor: str
    reference: str
    pixels: str = "round"
    classes: list[int] | None = None
    prompts: str | None = None
    clip: str | None = None
    extractor_weights: str | None = None

    @property
    def sampler(self) -> SamplerOptions:
        """What changes a trajectory."""
        return SamplerOptions(steps=self.steps, scheduler=self.scheduler, guidance=self.guidance)

    @property
    def scores(self) -> bool:
        """Whether images are compared with a reference."""
        return self.extractor != NO_EXTRACTOR

    def __post_init__(self) -> None:
        super().__post_init__()
        require(self.classes != [], "protocol.classes", self.classes, "name at least one, or null for all")
        require(self.n >= 10, "protocol.n", self.n, "the scores need at least 10 images; 1,000 and more give KID too")
        require(0 <= self.noise_seed < 2**32, "protocol.noise_seed", self.noise_seed, "choose 0 to 2^32 - 1")
        known = ("round", "truncate")
        require(self.pixels in known, "protocol.pixels", self.pixels, f"choose {' or '.join(known)}")
        require(self.heldout > 0, "protocol.heldout", self.heldout, "choose at least 1")


@dataclass
class Sampling:
    batch: int
    channels_last: bool

    def __post_init__(self) -> None:
        require(self.batch > 0, "sampling.batch", self.batch, "choose at least 1")


@dataclass
class Inspection:
    """On how many ``rows`` the insides of the networks are looked at; 0: not at all.

    ``lpips``: the file of the backbone's weights with which LPIPS to full precision is measured; None: it is not.
    """

    rows: int
    lpips: str | None = None

    def __post_init__(self) -> None:
        require(self.rows >= 0, "inspection.rows", self.rows, "choose 0 (none) or more")


@dataclass
class Tracker:
    name: str
    project: str = "qdexp"
    entity: str | None = None
    mode: str = "offline"

    def __post_init__(self) -> None:
        modes = ("offline", "online")
        require(self.mode in modes, "tracker.mode", self.mode, f"choose one of {', '.join(modes)}")
        allowed = len(self.project) <= 128 and not set(self.project) & set("/\\#?%:")
        require(allowed, "tracker.project", self.project, "W&B takes at most 128 characters, and none of / \\ # ? % :")
