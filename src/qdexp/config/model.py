"""Options of the model."""

from dataclasses import dataclass, field, replace
from typing import Any

from qdexp.config.checks import WITHOUT_EFFECT, Target, require, require_name


@dataclass
class FirstStage:
    """The autoencoder of a latent model: images are ``network.decode(latents / scale + shift)``.

    ``weights`` and ``subfolder`` as in ``Model``. A ``scale`` that contradicts the one in a CompVis checkpoint is refused;
    where it is null, the checkpoint has to hold one.
    """

    weights: str = field(metadata=WITHOUT_EFFECT)  # what is in the files counts
    network: Target
    scale: float | None = 1.0
    shift: float = 0.0
    subfolder: str = field(default="vae", metadata=WITHOUT_EFFECT)

    def __post_init__(self) -> None:
        option = "model.first_stage"
        require("_target_" in self.network, f"{option}.network", self.network, "name the network's class as _target_")
        require(self.scale is None or self.scale > 0, f"{option}.scale", self.scale, "choose a number above 0")


@dataclass
class Model:
    """``network`` builds the architecture, ``weights`` fill it, ``schedule`` is its diffusers noise schedule.

    ``weights``: a file, a diffusers folder, a name on the Hugging Face hub, or ``random``; ``subfolder``: where they lie in a
    folder; ``publisher``: where they can be had. ``shape`` is that of x_t: of latents where there is a first stage.
    ``condition``: what the network is asked for beside x_t and t; null for an unconditional one.
    ``guidance``, ``prompts``: what protocols take where they say nothing else; a file of prompts, which protocols with a
    reference do not take, since they need those of its images.
    """

    name: str = field(metadata=WITHOUT_EFFECT)
    weights: str = field(metadata=WITHOUT_EFFECT)  # what is in the files counts
    shape: list[int]
    network: Target
    schedule: dict[str, Any]
    subfolder: str = field(default="", metadata=WITHOUT_EFFECT)
    publisher: str | None = field(default=None, metadata=WITHOUT_EFFECT)
    first_stage: FirstStage | None = None
    condition: Target | None = None
    guidance: float | None = field(default=None, metadata=WITHOUT_EFFECT)  # the protocol's counts
    prompts: str | None = field(default=None, metadata=WITHOUT_EFFECT)

    def __post_init__(self) -> None:
        require_name("model.name", self.name)
        if self.condition is not None:
            named = "_target_" in self.condition
            require(named, "model.condition", self.condition, "name the condition's class as _target_")
        require(len(self.shape) == 3 and min(self.shape) > 0, "model.shape", self.shape, "give [channels, height, width]")
        require("_target_" in self.network, "model.network", self.network, "name the network's class as _target_")

    @property
    def bare(self) -> "Model":
        """The network and its noise schedule alone."""
        return replace(self, first_stage=None, condition=None)
