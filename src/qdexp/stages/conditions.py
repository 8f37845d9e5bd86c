"""What the protocol asks of a conditional model: encoded once, before anything is sampled."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from qdexp.config import Config
from qdexp.sampling.conditions import Conditions
from qdexp.stages.base import Stage, identity


class ConditionsStage(Stage):
    """``conditions.safetensors``: every distinct condition, a row each, and the empty one."""

    name = "conditions"
    version = 1
    sources = ("qdexp.stages.conditions", "qdexp.sampling")

    @property
    def options(self) -> dict[str, Any]:
        assert self.config.model.condition is not None
        return {"condition": identity(self.config.model.condition), "classes": self.config.protocol.classes}

    @property
    def files(self) -> dict[str, Path]:
        found: dict[str, Path] = instantiate(self.config.model.condition).files(self.config.protocol)
        return found

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        instantiate(self.config.model.condition).encode(self.config.protocol, self.device).save(folder)


def condition_inputs(config: Config) -> dict[str, Stage]:
    """The input of every stage that runs the network at the sampler's calls; none where the model is unconditional."""
    return {} if config.model.condition is None else {"conditions": ConditionsStage(config)}


def read_conditions(inputs: dict[str, Path], config: Config) -> Conditions:
    """What ``condition_inputs`` gave, or nothing."""
    return Conditions.load(inputs["conditions"], config.protocol.guidance) if inputs.get("conditions") else Conditions.none()
