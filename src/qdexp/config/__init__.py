"""The whole configuration as typed values. Every mistake a user can make in an option is named here, before any work starts.

``Config.of(cfg)`` turns what Hydra composed into these dataclasses; each checks itself when it is made.
"""

from dataclasses import dataclass

from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from qdexp.config.checks import (
    NAMES_CODE,
    NO_EXTRACTOR,
    ORDERED,
    RANDOM,
    UNTOUCHED,
    WITHOUT_EFFECT,
    Target,
    require,
    require_name,
)
from qdexp.config.cluster import Cluster, Resources
from qdexp.config.learning import BlockWise, Iterations, Recon, ScaleLearning, WeightLearning
from qdexp.config.measuring import Inspection, Protocol, SamplerOptions, Sampling, Tracker, Trajectory
from qdexp.config.model import FirstStage, Model
from qdexp.config.quantizing import ACTIVATIONS, TIMESTEP_GROUPS, WEIGHTS, ActGrid, Calib, Quant, Quantizer, WeightGrid
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
    "ActGrid",
    "BlockWise",
    "Calib",
    "Cluster",
    "Config",
    "FirstStage",
    "Inspection",
    "Iterations",
    "Model",
    "Protocol",
    "Quant",
    "Quantizer",
    "Recon",
    "Resources",
    "SamplerOptions",
    "Sampling",
    "ScaleLearning",
    "Target",
    "Tracker",
    "Trajectory",
    "WeightGrid",
    "WeightLearning",
]


def register_resolvers() -> None:
    """``${zoo:PATH}`` in a config is a file that ships with qdexp."""
    OmegaConf.register_new_resolver("zoo", lambda path: str(ZOO / path), replace=True)


register_resolvers()


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
        require(self.device in devices, "device", self.device, f"choose one of {', '.join(devices)}")
        require(0 <= self.seed < 2**32, "seed", self.seed, "choose 0 to 2^32 - 1")
        require(self.out != "", "out", self.out, "name a folder")
        require_name("sweep", self.sweep)

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
        return not (self.quant.touched and self.quantizer.filled)
