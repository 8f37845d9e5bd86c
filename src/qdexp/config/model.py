"""Options of the model."""

from dataclasses import dataclass, field, replace
from typing import Annotated, Any

from annotated_types import Gt, Len
from pydantic import Field

from qdexp.config.checks import WITHOUT_EFFECT, Name, Positive, Target, Text


@dataclass
class FirstStage:
    """The autoencoder of a latent model: images are ``network.decode(latents / scale + shift)``.

    ``weights`` and ``subfolder`` as in ``Model``. A ``scale`` that contradicts the one in a CompVis checkpoint is refused;
    where it is null, the checkpoint has to hold one.
    """

    weights: Text = field(metadata=WITHOUT_EFFECT)  # what is in the files counts
    network: Target
    scale: Annotated[float, Gt(0)] | None = 1.0
    shift: float = 0.0
    subfolder: Text = field(default="vae", metadata=WITHOUT_EFFECT)


@dataclass
class Model:
    """``network`` builds the architecture, ``weights`` fill it, ``schedule`` is its diffusers noise schedule.

    ``weights``: a file, a diffusers folder, a name on the Hugging Face hub, or ``random``; ``subfolder``: where they lie in a
    folder; ``publisher``: where they can be had. ``shape`` is that of x_t: of latents where there is a first stage.
    ``condition``: what the network is asked for beside x_t and t; null for an unconditional one. ``example``: the shape of one
    row of each of its named inputs, [] of an integer: for networks of your own, which can then be described before any work.
    ``guidance``, ``prompts``: what protocols take where they say nothing else; a file of prompts, which protocols with a
    reference do not take, since they need those of its images.
    """

    name: Name = field(metadata=WITHOUT_EFFECT)
    weights: Text = field(metadata=WITHOUT_EFFECT)  # what is in the files counts
    shape: Annotated[list[Positive], Len(3, 3), Field(description="[channels, height, width]")]
    network: Target
    schedule: dict[str, Any]
    subfolder: Text = field(default="", metadata=WITHOUT_EFFECT)
    publisher: Text | None = field(default=None, metadata=WITHOUT_EFFECT)
    first_stage: FirstStage | None = None
    condition: Target | None = None
    example: dict[str, list[int]] | None = None
    guidance: float | None = field(default=None, metadata=WITHOUT_EFFECT)  # the protocol's counts
    prompts: Text | None = field(default=None, metadata=WITHOUT_EFFECT)

    @property
    def bare(self) -> "Model":
        """The network and its noise schedule alone."""
        return replace(self, first_stage=None, condition=None)
