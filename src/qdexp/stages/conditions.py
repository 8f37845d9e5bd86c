"""Conditions of a conditional model, encoded once, before anything is sampled."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from qdexp import device as devices
from qdexp import files, models
from qdexp.config import WITHOUT_EFFECT, Config, Model
from qdexp.errors import UserError
from qdexp.models.conditioning import Conditioning, text_options
from qdexp.models.conditions import example_condition
from qdexp.sampling.conditions import EMPTY, PIECE, Conditions, flatten, piece_path
from qdexp.sampling.shards import Stream
from qdexp.stages.base import Stage
from qdexp.stages.keys import identity


@dataclass(frozen=True, eq=False, kw_only=True)
class ConditionsStage(Stage):
    """``asked-NUMBER.safetensors``: the distinct conditions of a noise stream, ``PIECE`` rows each; ``empty.safetensors``.

    ``wanted``: the conditions of the stream, an entry a row; ``condition``: what of the model, its ``files`` aside, changes the
    conditions, as its ``Conditioning`` says.
    """

    name = "conditions"

    model: Model = field(metadata=WITHOUT_EFFECT)
    condition: Mapping[str, Any]
    files: Mapping[str, Path]
    wanted: Sequence[Any]

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        conditioning = conditioning_of(self.model)  # it goes when the work is done, with the encoders that it loads
        for number, start in enumerate(range(0, len(self.wanted), PIECE)):
            path = piece_path(folder, number)
            if not files.are_tensors(path):
                piece = conditioning.encode(self.wanted[start : start + PIECE], self.model, self.device)
                files.write_tensors(path, flatten(piece))
        files.write_tensors(folder / EMPTY, flatten(conditioning.nothing(self.model, self.device)))


def conditions_of(config: Config, stream: Stream) -> ConditionsStage | None:
    """The input of every stage that runs the network at the sampler's calls; None where the model is unconditional."""
    model = config.model
    if model.condition is None:
        return None
    conditioning = conditioning_of(model)
    return ConditionsStage(
        device=devices.resolve(config.device),
        model=replace(model, first_stage=None),
        condition={**identity({"_target_": model.condition["_target_"]}), **conditioning.identity(model)},
        files=conditioning.files(model),
        wanted=list(conditioning.wanted(config, stream.name, stream.n)),
    )


def conditioning_of(model: Model) -> Conditioning:
    """The conditioning of the model. UserError where it is no way to ask."""
    try:
        conditioning = instantiate(model.condition)
    except InstantiationException as error:
        raise UserError(f"model.condition: {' '.join(str(error).split())}") from error
    if not isinstance(conditioning, Conditioning):
        raise UserError(f"model.condition={model.condition}: name a subclass of {Conditioning.__module__}.Conditioning")
    return conditioning


def check(config: Config) -> None:
    """Raises UserError where the model cannot have the conditions of the protocol, or no encoder for them."""
    model, protocol = config.model, config.protocol
    if model.condition is not None:
        conditioning_of(model).check(config)
        return
    wanted = example_condition(models.skeleton(model), stated=model.example)
    if wanted:
        raise UserError(f"model.condition=null: {model.name} needs {' and '.join(wanted)}; name a condition that "
                        f"gives them, as the models in conf/model do")  # fmt: skip
    asked = {"protocol.guidance": None if protocol.guidance == 1 else protocol.guidance, "protocol.classes": protocol.classes}
    for option, value in (asked | text_options(config)).items():
        if value is not None:
            raise UserError(f"{option}={value}: {model.name} is unconditional; leave it out")


def protocol_of(config: Config) -> dict[str, Any]:
    """The conditions of the images, as a part of the protocol; empty where the model is unconditional."""
    if config.model.condition is None:
        return {}
    protocol = config.protocol
    return {"guidance": protocol.guidance, **conditioning_of(config.model).named(config, "evaluation", protocol.n)}


def read_conditions(inputs: dict[str, Path], guidance: float) -> Conditions:
    """Read the conditions of the stage that ``conditions_of`` gave, or of an unconditional model."""
    return Conditions.load(inputs["conditions"], guidance) if inputs.get("conditions") else Conditions.none()
