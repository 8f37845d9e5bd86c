"""Stages: a dataclass of everything that the result depends on, and the work itself.

Fields are options, files and other stages; from them follow inputs and key (``qdexp.stages.keys``), and the work reads nothing
else. Two cells that need the same stage share it.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, is_dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import torch

from qdexp import code, machine, meter, provenance
from qdexp import device as devices
from qdexp.config import WITHOUT_EFFECT
from qdexp.layout import entry_name
from qdexp.stages.keys import Keyed, content_of_fields, counted, short_hash
from qdexp.store import Entry, Store

Results = dict[str, dict[str, Any]]
"""Sections of a record (metrics, curves, ...) and what they hold; ``artifacts`` are paths."""


@dataclass(frozen=True, eq=False, kw_only=True)
class Stage(Keyed):
    """One step of a cell whose result is kept."""

    device: torch.device = field(metadata=WITHOUT_EFFECT)  # its kind is in the environment

    @property
    @abstractmethod
    def name(self) -> str:
        """The stage's name, which its results, jobs and resources go by."""

    @property
    def quick(self) -> bool:
        """Whether, on a cluster, it takes no job of its own: who reads it makes it."""
        return False

    @property
    def portable(self) -> bool:
        """Whether its result is the same whichever machine of a kind makes it."""
        return True

    @abstractmethod
    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        """Does the work: reads the folders of the inputs, fills ``folder``."""

    def results(self, folder: Path) -> Results:
        """The sections that its result, in ``folder``, adds to the record of its cell."""
        return {}

    @cached_property
    def inputs(self) -> dict[str, "Stage"]:
        """The stages that this one reads, by the role that they play."""
        return {role: value for role, value in _named(self) if isinstance(value, Stage)}

    @property
    def files_outside(self) -> dict[str, Path]:
        """The files outside the store that it reads, by their roles."""
        return {role: value for role, value in _named(self) if isinstance(value, Path)}

    def described(self, key_of: Callable[["Stage"], str]) -> dict[str, Any]:
        """All that the key is a hash of; ``key_of``: the keys of the inputs."""
        return {
            "stage": self.name,
            "fields": content_of_fields(self, key_of),
            "code": code_of_stage(type(self)),
            "environment": devices.environment(self.device),
        }

    @cached_property
    def key(self) -> str:
        return short_hash(self.described(lambda stage: stage.key))

    @property
    def entry(self) -> str:
        """The name of the result in the store."""
        return entry_name(self.name, self.key)

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
            spent = meter.measure(self.device, lambda: self.compute(folder, inputs))
            print(f"  {self.name:<13} {self.key}  {spent['seconds']:.1f} s", flush=True)
            return spent

        note = self.described(lambda stage: stage.key) | {"made": provenance.commit()}
        return store.make(self.entry, work, note, machine.kind(self.device))


def _named(value: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass by name, and those of the mappings and dataclasses in it."""
    pending = list(counted(value))
    for name, inner in pending:
        yield name, inner
        if isinstance(inner, Mapping):
            pending += inner.items()
        elif is_dataclass(inner) and not isinstance(inner, Stage):
            pending += counted(inner)


@cache
def code_of_stage(kind: type[Stage]) -> list[str]:
    """Digests of the code behind a stage: of its own, and of that which it is a variety of. Read once a process."""
    kinds = [one for one in kind.__mro__ if issubclass(one, Stage) and one is not Stage]
    return [code.digest(one.__module__, _is_stage) for one in kinds]


def _is_stage(module: str) -> bool:
    """Whether it defines a stage: of what that computes, its key knows the code."""
    return module in _stage_modules()


def _stage_modules() -> set[str]:
    found, pending = set[str](), [Stage]
    while pending:
        kinds = pending.pop().__subclasses__()
        found |= {kind.__module__ for kind in kinds}
        pending += kinds
    return found


class Sharded(ABC):
    """A stage whose result is made of shards: processes may make them independently."""

    @property
    @abstractmethod
    def shards(self) -> range:
        """The numbers of the shards."""

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
