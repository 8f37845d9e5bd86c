"""The whole configuration as typed values. Every mistake a user can make in an option is named here, before any work starts.

``Config.of(cfg)`` turns what Hydra composed into these dataclasses; their types hold what is possible.
"""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from pydantic import Field

from qdexp.config.checks import (
    NAMES_CODE,
    NO_EXTRACTOR,
    ORDERED,
    RANDOM,
    READ_FROM_FILES,
    STRICT,
    UNTOUCHED,
    WITHOUT_EFFECT,
    Device,
    Name,
    Seed,
    Target,
    Text,
    checked,
)
from qdexp.config.cluster import Cluster, Resources
from qdexp.config.learning import BlockWise, Recon, ScaleLearning, WeightLearning
from qdexp.config.measuring import Inspection, Protocol, SamplerOptions, Sampling, Tracker, Trajectory
from qdexp.config.memory import Memory
from qdexp.config.model import FirstStage, Model
from qdexp.config.quantizing import ACTIVATIONS, TIMESTEP_GROUPS, WEIGHTS, Calib, Quant, Quantizer
from qdexp.errors import UserError
from qdexp.paths import ZOO

__all__ = [
    "ACTIVATIONS",
    "NAMES_CODE",
    "NO_EXTRACTOR",
    "ORDERED",
    "RANDOM",
    "TIMESTEP_GROUPS",
    "UNTOUCHED",
    "WEIGHTS",
    "WITHOUT_EFFECT",
    "BlockWise",
    "Calib",
    "Cluster",
    "Config",
    "FirstStage",
    "Memory",
    "Model",
    "Protocol",
    "Quant",
    "Resources",
    "SamplerOptions",
    "Sampling",
    "ScaleLearning",
    "Target",
    "Tracker",
    "WeightLearning",
]

OmegaConf.register_new_resolver("zoo", lambda path: str(ZOO / path), replace=True)  # ${zoo:PATH}: a file that ships with qdexp


@dataclass
class Config:
    """One cell."""

    __pydantic_config__: ClassVar[Any] = STRICT

    model: Model
    quant: Quant
    quantizer: Quantizer
    calib: Calib
    recon: Recon
    memory: Memory
    backend: Target
    protocol: Protocol
    tracker: Tracker
    cluster: Cluster
    method: Name
    trajectory: Trajectory
    sampling: Sampling
    inspection: Inspection
    out: Annotated[Text, Field(min_length=1, pattern=r"^[^\x00-\x1f]*$", description="a folder")]
    sweep: Name
    seed: Seed
    device: Device
    metric: dict[str, Target | None] = field(default_factory=dict)
    """By their names, see ``qdexp.metrics.base``; null turns one off."""

    @staticmethod
    def of(cfg: DictConfig) -> "Config":
        """What Hydra composed, typed. Raises UserError with a line for each option of a wrong type, name or value."""
        try:
            plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            option = getattr(error, "full_key", None) or "config"
            raise UserError(f"{option}: {str(error).splitlines()[0]}") from error
        return checked(Config, plain)

    @classmethod
    def early(cls, cfg: DictConfig) -> "Config | None":
        """Likewise, where all is there: None where something is left to the model's files (``model=folder``), which are read
        when all is loaded that computes."""
        left = [*(f"model.{option}" for option in READ_FROM_FILES), "protocol.scheduler"]
        return None if any(OmegaConf.select(cfg, option) is None for option in left) else cls.of(cfg)

    @property
    def full_precision(self) -> bool:
        """True where nothing is quantized, whatever the other axes say: such cells are one and the same."""
        return not (self.quant.touched and self.quantizer.filled)
