"""What a backend is: the arithmetic in which a quantized network runs.

A method ends in a network whose layers round their weights and inputs to grids and compute in floating point between them.
``lower`` takes it to another arithmetic: integer kernels, a compiler, another library. What a backend cannot take it leaves as
it is, and says so.

A backend of your own is a frozen dataclass that extends ``Backend``, in a file on the Python path; its fields are its options.
"""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from torch import nn

from qdexp.config import NAMES_CODE, Config
from qdexp.config.checks import STRICT


@dataclass(frozen=True, kw_only=True)
class Lowered:
    """A network as it runs.

    Attributes:
        network: Called as the original, in eval mode on its device. What goes by the name of a layer computes what that layer
            does, so that it can be looked at alone.
        left: The modules that compute as in ``simulated`` though the backend is for their kind, by their names, and why.
    """

    network: nn.Module
    left: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Backend(ABC):
    """An arithmetic. The options of a subclass are its fields: all are part of the key of what is computed with it, but for
    those marked ``WITHOUT_EFFECT``. A mistake in them is raised as ValueError by ``__post_init__``."""

    __pydantic_config__: ClassVar[Any] = STRICT

    @abstractmethod
    def lower(self, network: nn.Module) -> Lowered:
        """Make the network that runs.

        Args:
            network: Quantized, in eval mode, on the device that it will run on; it may be changed in place. What depends on the
                shapes of its inputs waits for the first call.

        Returns:
            The network, which computes the same up to the rounding of floating point.

        Raises:
            qdexp.errors.UserError: It cannot be lowered at all.
        """

    def check(self, config: Config) -> None:
        """Raises UserError or ValueError for what it cannot do in this cell: called before any work."""
        return

    def files(self) -> dict[str, Path]:
        """The files outside the store that it reads, by their roles; they count by content. ValueError where one is missing."""
        return {}


@dataclass(frozen=True)
class NamedBackend:
    """A backend as a cell has it; ``target``: the ``_target_`` that it was made from, ``files``: those that it reads."""

    target: str = field(metadata=NAMES_CODE)
    backend: Backend
    files: Mapping[str, Path]
