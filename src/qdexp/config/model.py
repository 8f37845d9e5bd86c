"""Options of the model."""

from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Annotated, Any

from annotated_types import Gt, Len
from pydantic import Field

from qdexp.config.checks import WITHOUT_EFFECT, Name, Positive, Target, Text


@dataclass(frozen=True)
class FirstStage:
    """The autoencoder of a latent model: images are ``network.decode(latents / scale + shift)``.

    Attributes:
        weights: A file, a diffusers folder, a hub name, or ``random``.
        network: The network's class with its arguments.
        scale: The scale of the latents. One that contradicts a CompVis checkpoint is refused; null: the checkpoint has to hold
            one.
        shift: The shift of the latents.
        subfolder: The place of the weights in a folder.
    """

    weights: Text = field(metadata=WITHOUT_EFFECT)  # what is in the files counts
    network: Target
    scale: Annotated[float, Gt(0)] | None = 1.0
    shift: float = 0.0
    subfolder: Text = field(default="vae", metadata=WITHOUT_EFFECT)


@dataclass(frozen=True)
class Model:
    """The network, its weights and its noise schedule.

    Attributes:
        name: The choice of ``model``.
        weights: A file, a diffusers folder, a name on the Hugging Face hub, or ``random``.
        shape: The shape of x_t, [channels, height, width]: of latents where there is a first stage.
        network: The network's class with its arguments.
        schedule: The noise schedule, as options of a diffusers scheduler, and what the network predicts.
        subfolder: The place of the weights in a folder.
        publisher: The place where the weights can be had.
        first_stage: The autoencoder of a latent model.
        condition: The condition that the network is called with, a ``qdexp.models.conditioning.Conditioning``; null: none.
        example: The shape of one row of each conditional argument, without the batch, [] for an integer. It lets a network of
            your own be described before any work.
        guidance: The guidance of protocols that name none.
        prompts: A file of prompts, for protocols without a reference that name none.
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

    @cached_property
    def bare(self) -> "Model":
        """The network and its noise schedule alone."""
        return replace(self, first_stage=None, condition=None)
