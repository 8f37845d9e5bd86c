"""Options of what is measured, and how: trajectories, protocol, sampling, what is looked at, where records go."""

from dataclasses import dataclass
from functools import cached_property
from typing import Annotated, Literal

from annotated_types import Ge, MinLen
from pydantic import Field

from qdexp.config.checks import NO_EXTRACTOR, Finite, Name, Positive, Seed, Target, Text
from qdexp.config.memory import Batch


@dataclass(frozen=True)
class Trajectory:
    """The full-precision trajectories that calibration rows are chosen from.

    Attributes:
        samples: The number of starting noises.
        prompts: A file of prompts, for models with prompts; null: those of the protocol, from the last one back.
    """

    samples: Positive
    prompts: Text | None = None


@dataclass(frozen=True, kw_only=True)
class SamplerOptions:
    """The sampler, from noise to image.

    Attributes:
        steps: The number of sampling steps.
        scheduler: The scheduler with its options.
        guidance: The scale of classifier-free guidance; 1: none.
    """

    steps: Positive
    scheduler: Target
    guidance: Annotated[float, Ge(0), Finite, Field(description="1: none")] = 1.0

    @property
    def branches(self) -> int:
        """The number of calls of the network per call of the sampler: two with guidance, for the unconditional branch too."""
        return 1 if self.guidance == 1 else 2


@dataclass(frozen=True, kw_only=True)
class Protocol(SamplerOptions):
    """The protocol of numbers. Numbers of different protocols are never put into one comparison.

    Attributes:
        name: The choice of ``protocol``.
        n: The number of images; 1,000 and more give KID too.
        noise_seed: The seed of the noise that images start from, the same in every cell.
        heldout: The number of trajectories on which the error of each timestep is measured.
        extractor: The extractor of the features in which images are compared with ``reference``: a name, or a module of your
            own as ``{_target_: CLASS, size: PIXELS}`` with its options; ``none``: images are compared with full precision
            alone.
        reference: The file of the reference's statistics.
        pixels: How pixels become 8 bits: ``round``, or ``truncate`` as latent diffusion's scripts do.
        classes: The classes that are drawn in turn; null: all.
        prompts: The file of the prompts that are drawn in turn: text, one per line, or COCO's captions (.json).
        clip: The folder of a CLIP model that scores how well images show their prompts; null: they are not scored.
        extractor_weights: The file of the extractor's weights; null: the place where they are usually kept.
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

    @cached_property
    def sampler(self) -> SamplerOptions:
        """The options that change a trajectory."""
        return SamplerOptions(steps=self.steps, scheduler=self.scheduler, guidance=self.guidance)

    @property
    def scores(self) -> bool:
        """Whether images are compared with a reference."""
        return self.extractor != NO_EXTRACTOR


@dataclass(frozen=True)
class Sampling:
    """The calls of the network.

    Attributes:
        batch: Rows of every forward pass of the sampler, exactly; another number may change an image's last bit.
        channels_last: Whether images lie with their channels last in memory.
    """

    batch: Batch
    channels_last: bool


@dataclass(frozen=True)
class Inspection:
    """The inspection of the insides of networks.

    Attributes:
        rows: Held-out trajectories whose activations and layers are looked at; 0: none.
        lpips: The file of the backbone's weights with which LPIPS to full precision is measured; null: it is not.
    """

    rows: Annotated[int, Ge(0), Field(description="0: none")]
    lpips: Text | None = None


@dataclass(frozen=True)
class Tracker:
    """The place where records are mirrored.

    Attributes:
        name: The choice of ``tracker``.
        project: The W&B project.
        entity: The W&B entity; null: your default.
        mode: Whether runs are written ``offline``, to be sent later, or ``online``.
    """

    name: Name
    project: Annotated[Text, Field(pattern=r"^[^/\\#?%:]{0,128}$", description=r"as in W&B: none of / \ # ? % :")] = "qdexp"
    entity: Text | None = None
    mode: Literal["offline", "online"] = "offline"
