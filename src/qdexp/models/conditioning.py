"""Conditions of a model: classes here, prompts in ``qdexp.models.prompts``.

``model.condition`` names a subclass of ``Conditioning``. Sample i of a noise stream has entry i of the stream's conditions,
modulo their number, in every cell.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from inspect import Parameter, signature
from pathlib import Path
from typing import Any

import torch
from hydra.utils import get_object

from qdexp.config import Config, Model
from qdexp.errors import UserError, did_you_mean
from qdexp.models.conditions import Condition

CALIBRATION = "calibration"
"""The noise stream from which quantizers learn; on the others numbers are measured."""


class Conditioning(ABC):
    """Base class of conditions: how a model is given classes, prompts or other conditions."""

    @abstractmethod
    def check(self, config: Config) -> None:
        """Check whether the model can be given the conditions of the config. Called before any work.

        Raises:
            qdexp.errors.UserError: It cannot; the message is one line that names the option and the fix.
        """

    @abstractmethod
    def wanted(self, config: Config, stream: str, samples: int) -> Sequence[Any]:
        """Return the conditions of a noise stream.

        Args:
            config: The config of the cell.
            stream: The name of the stream; ``CALIBRATION`` is the one that quantizers learn from.
            samples: The number of samples in it.

        Returns:
            The conditions of the first samples, in turn; fewer where they repeat, as sample i has entry i modulo their number.
        """

    @abstractmethod
    def named(self, config: Config, stream: str, samples: int) -> dict[str, Any]:
        """Return the same conditions as keys and protocols name them.

        Args:
            config: The config of the cell.
            stream: The name of the stream.
            samples: The number of samples in it.
        """

    @abstractmethod
    def identity(self, model: Model) -> dict[str, Any]:
        """Return the properties of this object and the model, beside the files, that change the conditions."""

    def files(self, model: Model) -> dict[str, Path]:
        """Return the files that ``encode`` reads, by their roles; files on the hub are fetched.

        Raises:
            qdexp.errors.UserError: A file is missing.
        """
        return {}

    @abstractmethod
    def encode(self, wanted: Sequence[Any], model: Model, device: torch.device) -> Condition:
        """Encode conditions.

        Args:
            wanted: Entries of ``wanted``.
            model: The config of the model.
            device: The device to compute on.

        Returns:
            The network's conditional arguments by name, tensors on the CPU with a row per entry.
        """

    @abstractmethod
    def nothing(self, model: Model, device: torch.device) -> Condition:
        """Encode the unconditional branch.

        Args:
            model: The config of the model.
            device: The device to compute on.

        Returns:
            The network's arguments for it, one row; an empty dict where the model has no unconditional branch.
        """


@dataclass(frozen=True)
class Classes(Conditioning):
    """Conditions of a class-conditional model: ``protocol.classes``, or all ``classes`` in turn.

    empty: the label that means "no class"; null where the model knows none. name: what the network calls its labels.
    """

    classes: int
    empty: int | None = None
    name: str = "class_labels"

    def check(self, config: Config) -> None:
        protocol = config.protocol
        taken = signature(getattr(get_object(config.model.network["_target_"]), "forward", lambda **_: None)).parameters
        uses = type(self).encode is Classes.encode  # a subclass may ask by other arguments
        if uses and self.name not in taken and all(one.kind != Parameter.VAR_KEYWORD for one in taken.values()):
            known = list(taken)[1:]
            raise UserError(f"model.condition.name={self.name}: the network takes no such argument"
                            f"{did_you_mean(self.name, known)}; it takes {', '.join(known)}")  # fmt: skip
        if any(not 0 <= label < self.classes for label in protocol.classes or []):
            raise UserError(f"protocol.classes={protocol.classes}: choose from 0 to {self.classes - 1}")
        if protocol.guidance != 1 and self.empty is None:
            raise UserError(f"protocol.guidance={protocol.guidance}: the model has no label for no class; leave it at 1")
        for option, value in text_options(config).items():
            if value is not None:
                raise UserError(f"{option}={value}: {config.model.name} is conditioned on classes; leave it out")

    def wanted(self, config: Config, stream: str, samples: int) -> Sequence[int]:
        return config.protocol.classes or range(self.classes)

    def named(self, config: Config, stream: str, samples: int) -> dict[str, Any]:
        return {"classes": config.protocol.classes}

    def identity(self, model: Model) -> dict[str, Any]:
        return asdict(self)

    def encode(self, wanted: Sequence[int], model: Model, device: torch.device) -> Condition:
        """Labels int64 [n]."""
        return {self.name: torch.tensor(wanted)}

    def nothing(self, model: Model, device: torch.device) -> Condition:
        return {} if self.empty is None else {self.name: torch.tensor([self.empty])}


def text_options(config: Config) -> dict[str, str | None]:
    """The options that only models with prompts have."""
    protocol = config.protocol
    return {
        "protocol.prompts": protocol.prompts,
        "trajectory.prompts": config.trajectory.prompts,
        "protocol.clip": protocol.clip,
    }
