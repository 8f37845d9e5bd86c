"""What every stage is: options, inputs, files it reads; from these its key; and the work itself.

The key is a hash of everything that changes the result: the options that matter (never paths or workers), the digests of the
files that are read, the keys of the inputs, the environment, the source of code that is not qdexp's own, and the stage's
version. Two cells that need the same stage share it.
"""

import hashlib
import inspect
import json
from abc import ABC, abstractmethod
from collections.abc import Sequence
from functools import cache, cached_property
from pathlib import Path
from typing import Any, ClassVar

from hydra.utils import get_object

from qdexp import device as devices
from qdexp.config import RANDOM, Config, Target
from qdexp.errors import UserError
from qdexp.files import sha256
from qdexp.stages import own_code
from qdexp.store import Entry, Store

_KNOWN = ("qdexp.", "diffusers.", "torch.")


def short_hash(value: object) -> str:
    """16 hex digits of the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def identity(target: Target) -> dict[str, Any]:
    """A target, and those among its arguments, with the digest of the module that defines it, where that is the user's own and
    has no version in the key; and with those of the user's other modules that this one imports, if it imports any."""
    name, given = target["_target_"], {key: _identified(value) for key, value in target.items()}
    try:
        found = get_object(name)
        source = inspect.getsourcefile(found)
    except Exception as error:
        raise UserError(f"_target_={name}: cannot be imported ({error}); check the name and PYTHONPATH") from error
    if name.startswith(_KNOWN) or source is None:
        return {**given, "source": None}
    others = own_code.imported(Path(source), getattr(inspect.getmodule(found), "__package__", None) or "")
    return {**given, "source": sha256(Path(source)), **({"imports": others} if others else {})}


def _identified(value: Any) -> Any:
    """An argument of a target: it may be a target too, or hold some."""
    if isinstance(value, dict):
        return identity(value) if "_target_" in value else {key: _identified(inner) for key, inner in value.items()}
    return [_identified(inner) for inner in value] if isinstance(value, list) else value


def digest(path: Path) -> str:
    """SHA-256 of a file: large weights are read once a process, not once a stage."""
    return _digest(path, path.stat().st_mtime_ns)


@cache
def _digest(path: Path, changed: int) -> str:
    """As of the time that the file ``changed``."""
    return sha256(path)


class Stage(ABC):
    """One step of a cell whose result is kept."""

    name: ClassVar[str]
    version: ClassVar[int]
    """To be raised whenever a change of the code changes the result."""
    sources: ClassVar[tuple[str, ...]]
    """The modules and packages whose code makes the result; a test watches them."""
    quick: ClassVar[bool] = False
    """Whether, on a cluster, it takes no job of its own: who reads it makes it."""

    def __init__(self, config: Config) -> None:
        self.config = config
        self.device = devices.resolve(config.device)

    @property
    def inputs(self) -> dict[str, "Stage"]:
        """The stages that this one reads, by the role that they play."""
        return {}

    @property
    @abstractmethod
    def options(self) -> dict[str, Any]:
        """The options that change the result."""

    @property
    def files(self) -> dict[str, Path]:
        """The files outside the store that this stage reads."""
        return {}

    @abstractmethod
    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        """Does the work: reads the folders of the inputs, fills ``folder``."""

    @cached_property
    def key(self) -> str:
        return short_hash(
            {
                "stage": self.name,
                "version": self.version,
                "options": self.options,
                "files": {name: digest(path) for name, path in self.files.items()},
                "inputs": {role: stage.key for role, stage in self.inputs.items()},
                "environment": devices.environment(self.device),
            }
        )

    @property
    def entry(self) -> str:
        """The name of the result in the store."""
        return f"{self.name}-{self.key}"

    def input_folders(self, store: Store) -> dict[str, Path]:
        """The results that it reads; what is missing is made."""
        return {role: stage.make(store).folder for role, stage in self.inputs.items()}

    def make(self, store: Store) -> Entry:
        """The stored result; what is missing of it, and of its inputs, is computed first."""
        done = store.open(self.entry)
        if done is not None:
            return done
        inputs = self.input_folders(store)

        def work(folder: Path) -> dict[str, float]:
            print(f"  {self.name:<13} {self.key}  ...", flush=True)
            costs = devices.measure(self.device, lambda: self.compute(folder, inputs))
            print(f"  {self.name:<13} {self.key}  {costs['seconds']:.1f} s", flush=True)
            return costs

        return store.make(self.entry, work, {"stage": self.name, "version": self.version, "options": self.options})


class Sharded(ABC):
    """What a stage is too whose result is made of shards: processes may make them apart from one another."""

    shards: range

    @abstractmethod
    def draw(self, folder: Path, inputs: dict[str, Path], shards: Sequence[int]) -> None:
        """Writes those of ``shards`` that ``folder`` lacks."""

    @abstractmethod
    def missing(self, folder: Path) -> list[int]:
        """The shards that ``folder`` lacks."""

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        missing = self.missing(folder)
        if missing:
            self.draw(folder, inputs, missing)


def network_options(config: Config) -> dict[str, Any]:
    """What defines the full-precision network and how it is run; weights come in as a file, unless they are random."""
    drawn = {"weights": RANDOM} if config.model.weights == RANDOM else {}
    return {
        "network": identity(config.model.network),
        **drawn,
        "batch": config.sampling.batch,
        "channels_last": config.sampling.channels_last,
    }


def sampler_options(config: Config) -> dict[str, Any]:
    """What defines the walk from noise to image."""
    return {
        "shape": config.model.shape,
        "schedule": config.model.schedule,
        "scheduler": identity(config.protocol.scheduler),
        "steps": config.protocol.steps,
        "guidance": config.protocol.guidance,
    }
