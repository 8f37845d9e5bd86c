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


@dataclass(frozen=True)
class Config:
    """The whole config of one cell.

    Attributes:
        model: The network, its weights and its noise schedule.
        quant: The grids that the network computes with.
        quantizer: How the constants of the grids are found.
        calib: The calibration set.
        recon: Options of the steps that learn block by block.
        memory: Where the rows of block-wise learning lie.
        backend: The arithmetic in which the quantized network runs.
        protocol: How numbers are measured.
        tracker: Where records are mirrored.
        cluster: The cluster that jobs go to.
        method: The method that ``quantizer`` and ``calib`` belong to.
        trajectory: The full-precision trajectories that calibration rows are chosen from.
        sampling: How the network is called.
        inspection: How closely the insides of the networks are looked at.
        out: The folder of the store, the records and the sweeps.
        sweep: The name of the sweep.
        seed: Moves calibration and rounding; the noise of the evaluation belongs to the protocol.
        device: The device to compute on: ``auto``, ``cpu`` or ``cuda``.
        metric: The metrics by their names, see ``qdexp.metrics.base``; null turns one off.
    """

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

    @staticmethod
    def of(cfg: DictConfig) -> "Config":
        """Make a typed config of what Hydra composed. Raises UserError with a line for each option of a wrong type, name or
        value."""
        try:
            plain = OmegaConf.to_container(cfg, resolve=True, throw_on_missing=True)
        except OmegaConfBaseException as error:
            option = getattr(error, "full_key", None) or "config"
            raise UserError(f"{option}: {str(error).splitlines()[0]}") from error
        return checked(Config, plain)

    @classmethod
    def early(cls, cfg: DictConfig) -> "Config | None":
        """Make a typed config before the heavy libraries are loaded; None where something is left to the model's files
        (``model=folder``), which are read later."""
        left = [*(f"model.{option}" for option in READ_FROM_FILES), "protocol.scheduler"]
        return None if any(OmegaConf.select(cfg, option) is None for option in left) else cls.of(cfg)

    @property
    def full_precision(self) -> bool:
        """True where nothing is quantized, whatever the other axes say: such cells are one and the same."""
        return not (self.quant.touched and self.quantizer.filled)
