"""What a conditional model is asked for: encoded once, before anything is sampled."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from qdexp import files, models
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.models.conditioning import Conditioning, text_options
from qdexp.models.conditions import example_condition
from qdexp.sampling.conditions import EMPTY, PIECE, Conditions, flatten, piece_path
from qdexp.sampling.shards import Stream
from qdexp.stages.base import Stage, identity


class ConditionsStage(Stage):
    """``asked-NUMBER.safetensors``: the distinct conditions of a noise stream, ``PIECE`` rows each; ``empty.safetensors``."""

    name = "conditions"
    version = 2
    sources = ("qdexp.stages.conditions", "qdexp.sampling", "qdexp.models")

    def __init__(self, config: Config, stream: Stream) -> None:
        super().__init__(config)
        self.stream, self.conditioning = stream, conditioning_of(config)

    @property
    def wanted(self) -> Sequence[Any]:
        """What the stream is asked for, an entry a row."""
        return self.conditioning.wanted(self.config, self.stream.name, self.stream.n)

    @property
    def options(self) -> dict[str, Any]:
        condition = self.config.model.condition
        assert condition is not None
        code = identity({"_target_": condition["_target_"]})
        named = self.conditioning.named(self.config, self.stream.name, self.stream.n)
        return {"condition": {**code, **self.conditioning.identity(self.config.model)}, **named}

    @property
    def files(self) -> dict[str, Path]:
        return self.conditioning.files(self.config.model)

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        conditioning = conditioning_of(self.config)  # it goes when the work is done, with the encoders that it loads
        wanted = self.wanted
        for number, start in enumerate(range(0, len(wanted), PIECE)):
            path = piece_path(folder, number)
            if not path.exists():
                piece = conditioning.encode(wanted[start : start + PIECE], self.config.model, self.device)
                files.write_tensors(path, flatten(piece))
        files.write_tensors(folder / EMPTY, flatten(conditioning.nothing(self.config.model, self.device)))


def conditioning_of(config: Config) -> Conditioning:
    """How the config's model is asked. UserError where it is no way to ask."""
    try:
        conditioning = instantiate(config.model.condition)
    except InstantiationException as error:
        raise UserError(f"model.condition: {' '.join(str(error).split())}") from error
    if not isinstance(conditioning, Conditioning):
        raise UserError(f"model.condition={config.model.condition}: name a subclass of {Conditioning.__module__}.Conditioning")
    return conditioning


def check(config: Config) -> None:
    """Raises UserError where the model cannot be asked for what the protocol asks for, or has nothing to ask it with."""
    model, protocol = config.model, config.protocol
    if model.condition is not None:
        conditioning_of(config).check(config)
        return
    wanted = example_condition(models.skeleton(model))
    if wanted:
        raise UserError(f"model.condition=null: {model.name} must be asked for {' and '.join(wanted)}; name a condition that "
                        f"gives them, as the models in conf/model do")  # fmt: skip
    asked = {"protocol.guidance": None if protocol.guidance == 1 else protocol.guidance, "protocol.classes": protocol.classes}
    for option, value in (asked | text_options(config)).items():
        if value is not None:
            raise UserError(f"{option}={value}: {model.name} is unconditional; leave it out")


def protocol_of(config: Config) -> dict[str, Any]:
    """What the images are asked for, as a part of the protocol; nothing where the model is unconditional."""
    if config.model.condition is None:
        return {}
    protocol = config.protocol
    return {"guidance": protocol.guidance, **conditioning_of(config).named(config, "evaluation", protocol.n)}


def condition_inputs(config: Config, stream: Stream) -> dict[str, Stage]:
    """The input of every stage that runs the network at the sampler's calls; none where the model is unconditional."""
    return {} if config.model.condition is None else {"conditions": ConditionsStage(config, stream)}


def read_conditions(inputs: dict[str, Path], config: Config) -> Conditions:
    """What ``condition_inputs`` gave, or nothing."""
    return Conditions.load(inputs["conditions"], config.protocol.guidance) if inputs.get("conditions") else Conditions.none()
