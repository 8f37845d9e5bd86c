"""Keys: from a stage's fields to its key.

The key is a hash of everything in the stage's dataclass, dataclasses inside included, but for fields that are marked as
``WITHOUT_EFFECT``: files by their digests, other stages by their keys, what a ``_target_`` names with the digest of its code;
and of the code of the stage itself and of the environment. So a new option is in the key from the moment that it is there.
"""

import hashlib
import inspect
import json
import sys
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import Field, fields, is_dataclass
from functools import cache
from pathlib import Path
from typing import Any

from hydra.utils import get_object

from qdexp import code
from qdexp.config import NAMES_CODE, ORDERED, WITHOUT_EFFECT, Target
from qdexp.entries import digest
from qdexp.errors import UserError
from qdexp.paths import PACKAGE

_VERSIONED = ("diffusers.", "torch.")
"""The packages whose versions are in the environment, for everything in them."""


class Keyed(ABC):
    """An object with a key of its own: a stage."""

    @property
    @abstractmethod
    def key(self) -> str: ...


def short_hash(value: object) -> str:
    """16 hex digits of the SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:16]


def content(value: Any, key_of: Callable[[Any], str]) -> Any:
    """The contribution of a value to a key, as JSON holds it; ``key_of``: the key of a stage among the values.

    Raises UserError where a ``_target_`` cannot be imported.
    """
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, Path):
        return digest(value)
    if is_dataclass(value):
        return {"stage": key_of(value)} if isinstance(value, Keyed) else content_of_fields(value, key_of)
    if isinstance(value, Mapping):
        inner = {str(name): content(one, key_of) for name, one in value.items()}
        return inner | ({"code": code_of(value["_target_"])} if "_target_" in value else {})
    return [content(one, key_of) for one in value]


def content_of_fields(value: Any, key_of: Callable[[Any], str]) -> dict[str, Any]:
    """The contribution of a dataclass's fields, except those without effect."""
    if not type(value).__module__.startswith(_OPTIONS):
        return _content_of_fields(value, key_of)
    if id(value) in _contents:
        return _contents[id(value)][1]
    found = _content_of_fields(value, key_of)
    if all(target.startswith(_READ_ONCE) for target in targets(value)):
        if len(_contents) >= _MOST:
            _contents.clear()
        _contents[id(value)] = value, found
    return found


_OPTIONS = f"{PACKAGE.name}.config."
"""The package of the options' dataclasses: they are frozen, hold no stage, and many stages share one."""
_READ_ONCE = (*_VERSIONED, f"{PACKAGE.name}.")
"""Targets whose code is read once in a process; the code of users may change while it lives."""
_contents: dict[int, tuple[object, dict[str, Any]]] = {}
"""The contributions of such dataclasses, by ``id``; the object beside each keeps its id from being used again."""
_MOST = 1000


def _content_of_fields(value: Any, key_of: Callable[[Any], str]) -> dict[str, Any]:
    return {one.name: _field(one.metadata, getattr(value, one.name), key_of) for one in _counted(value.__class__)}


def counted(value: Any) -> Iterator[tuple[str, Any]]:
    """The fields of a dataclass that change a result, and their values."""
    return ((one.name, getattr(value, one.name)) for one in _counted(value.__class__))


@cache
def _counted(kind: Any) -> Sequence[Field[Any]]:
    """The fields of a dataclass that change a result."""
    return [one for one in fields(kind) if not _has(one.metadata, WITHOUT_EFFECT)]


def _field(metadata: Mapping[str, Any], value: Any, key_of: Callable[[Any], str]) -> Any:
    found = content(value, key_of)
    if not metadata:
        return found
    if _has(metadata, ORDERED) and isinstance(value, Mapping):
        return [[name, found[name]] for name in value]
    if _has(metadata, NAMES_CODE) and "." in value:
        return {"name": value, "code": code_of(value)}
    return found


def _has(metadata: Mapping[str, Any], mark: Mapping[str, bool]) -> bool:
    return mark.items() <= metadata.items()


def identity(target: Target) -> Any:
    """A target with its arguments and the digest of its code, and so for the targets among its arguments."""
    return content(target, lambda stage: stage.key)


def code_of(target: str) -> str | None:
    """Digest of the code of what a ``_target_`` names; None where the environment names its version.

    Raises UserError where it cannot be imported.
    """
    modules = modules_of(target)
    if not modules or target.startswith(_VERSIONED):
        return None
    if target.startswith(f"{PACKAGE.name}."):
        return _own_code(modules[-1])
    return short_hash([code.digest(module) for module in modules])


@cache
def modules_of(target: str) -> Sequence[str]:
    """The module in which a ``_target_`` is found and, where that is another, the one that defines it: what is imported may be
    changed, or wrapped, before it is named. Empty where no source defines it. UserError where it cannot be imported."""
    try:
        found = get_object(target)
        module, source = inspect.getmodule(found), inspect.getsourcefile(found)
    except Exception as error:
        raise UserError(f"_target_={target}: cannot be imported ({' '.join(str(error).split())}); check the name and "
                        f"PYTHONPATH") from error  # fmt: skip
    if source is None or module is None:
        return []
    parts = target.split(".")
    prefixes = (".".join(parts[:end]) for end in range(len(parts) - 1, 0, -1))
    return list(dict.fromkeys([*[next(name for name in prefixes if name in sys.modules)], module.__name__]))


@cache
def _own_code(module: str) -> str:
    """The digest of one of qdexp's modules: read once a process."""
    return code.digest(module)


def targets(value: Any) -> Iterator[str]:
    """All that a stage's fields name as code, of the stages that it reads nothing."""
    if isinstance(value, Mapping):
        yield from ([value["_target_"]] if "_target_" in value else [])
        for inner in value.values():
            yield from () if isinstance(inner, Keyed) else targets(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from targets(inner)
    elif is_dataclass(value):
        for field in fields(value):
            inner = getattr(value, field.name)
            if _has(field.metadata, NAMES_CODE) and "." in inner:
                yield inner
            elif not _has(field.metadata, WITHOUT_EFFECT) and not isinstance(inner, Keyed):
                yield from targets(inner)
