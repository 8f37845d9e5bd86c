"""Options of what is measured, and how: trajectories, protocol, sampling, what is looked at, where records go."""

from dataclasses import dataclass
from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic import Field

from qdexp.config.checks import NO_EXTRACTOR, Finite, Name, Positive, Seed, Target, Text
from qdexp.config.memory import Batch


@dataclass
class Trajectory:
    """``prompts``: a file of them for models that are asked so; None: those of the protocol, from the last one back."""

    samples: Positive
    prompts: Text | None = None


@dataclass(kw_only=True)
class SamplerOptions:
    """From noise to image: ``steps`` of a ``scheduler``, with classifier-free ``guidance`` (1: none)."""

    steps: Positive
    scheduler: Target
    guidance: Annotated[float, Ge(0), Finite, Field(description="1: none")] = 1.0

    @property
    def branches(self) -> int:
        """How often the network is called at each of the sampler's calls: with guidance for the empty condition too."""
        return 1 if self.guidance == 1 else 2


@dataclass(kw_only=True)
class Protocol(SamplerOptions):
    """How a number is measured. Numbers of different protocols are never put into one comparison.

    ``pixels``: how an image becomes one of 8 bits, by ``round`` or by ``truncate``.
    ``extractor``: of the features in which images are compared with ``reference``, a name, or a module of the user's own as
    ``{_target_: CLASS, size: PIXELS}`` with its options; "none": they are not.
    Of conditional models: ``classes`` (null: all) or the ``prompts`` in a file are drawn in turn, with ``guidance`` (1: none).
    ``clip``: the folder of a CLIP model that scores how well images show their prompts; None: they are not scored.
    """

    name: Name
    n: Annotated[int, Ge(10), Field(description="images; 1,000 and more give KID too")]
    noise_seed: Seed
    heldout: Positive
    extractor: Target | Text
    reference: Text
    pixels: Literal["round", "truncate"] = "round"
    classes: Annotated[Annotated[list[int], MinLen(1)] | None, Field(description="null: all")] = None
    prompts: Text | None = None
    clip: Text | None = None
    extractor_weights: Text | None = None

    @property
    def sampler(self) -> SamplerOptions:
        """What changes a trajectory."""
        return SamplerOptions(steps=self.steps, scheduler=self.scheduler, guidance=self.guidance)

    @property
    def scores(self) -> bool:
        """Whether images are compared with a reference."""
        return self.extractor != NO_EXTRACTOR


@dataclass
class Sampling:
    batch: Batch
    channels_last: bool


@dataclass
class Inspection:
    """On how many ``rows`` the insides of the networks are looked at; 0: not at all.

    ``lpips``: the file of the backbone's weights with which LPIPS to full precision is measured; None: it is not.
    """

    rows: Annotated[int, Ge(0), Field(description="0: none")]
    lpips: Text | None = None


@dataclass
class Tracker:
    name: Name
    project: Annotated[Text, Field(pattern=r"^[^/\\#?%:]{0,128}$", description=r"as in W&B: none of / \ # ? % :")] = "qdexp"
    entity: Text | None = None
    mode: Literal["offline", "online"] = "offline"
