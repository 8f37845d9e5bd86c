"""Backends: the arithmetic in which a quantized network runs.

A method ends in a network whose layers round their weights and inputs to grids and compute in floating point between them.
``lower`` takes it to another arithmetic: integer kernels, a compiler, another library. Modules that a backend cannot take stay
as they are, and are reported.

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
    """A network as it runs in a backend.

    Attributes:
        network: The network in eval mode on its device, called as the original. A submodule under the name of a layer computes
            what that layer does, so that it can be run alone.
        left: The modules that stay in simulated arithmetic although the backend is for their kind, by name, and why.
    """

    network: nn.Module
    left: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Backend(ABC):
    """Base class of backends. The options of a subclass are its fields.

    All fields are part of the key of what is computed with the backend, except those marked ``WITHOUT_EFFECT``. A mistake in
    them is raised as ValueError by ``__post_init__``.
    """

    __pydantic_config__: ClassVar[Any] = STRICT

    @abstractmethod
    def lower(self, network: nn.Module) -> Lowered:
        """Make the network that runs.

        Args:
            network: The quantized network in eval mode, on the device that it will run on; it may be changed in place. Work
                that depends on the shapes of its inputs waits for the first call.

        Returns:
            The network, which computes the same up to the rounding of floating point.

        Raises:
            qdexp.errors.UserError: It cannot be lowered at all.
        """

    def check(self, config: Config) -> None:
        """Check whether the backend can run in this cell. Called before any work.

        Args:
            config: The config of the cell.

        Raises:
            qdexp.errors.UserError: The backend cannot run; the message is one line that names the option and the fix.
            ValueError: The same, about one of the backend's own options.
        """
        return

    def files(self) -> dict[str, Path]:
        """Return the files outside the store that the backend reads, by their roles; their content is part of the key.

        Raises:
            ValueError: A file is missing.
        """
        return {}


@dataclass(frozen=True)
class NamedBackend:
    """A backend as a cell has it; ``target``: the ``_target_`` that it was made from, ``files``: those that it reads."""

    target: str = field(metadata=NAMES_CODE)
    backend: Backend
    files: Mapping[str, Path]
