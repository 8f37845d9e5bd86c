"""What options are checked with, and the words that stand for something else than their value."""

import json
import re
from collections.abc import Callable, Mapping
from dataclasses import MISSING, fields
from difflib import get_close_matches
from functools import cache
from typing import Any, TypeVar

from pydantic import ConfigDict, TypeAdapter, ValidationError

from qdexp.errors import UserError

Target = dict[str, Any]
"""A Hydra node with ``_target_``: what is built, and with which arguments."""

UNTOUCHED = 32
"""The bit-width that means: leave it in full precision."""

RANDOM = "random"
"""In place of a file of weights: the architecture with seeded random numbers, to rehearse a run."""

NO_EXTRACTOR = "none"
"""In place of a feature extractor: images are compared with those of full precision alone."""

LONGEST_NAME = 100
"""Bytes of a name that becomes a part of file names, which may have 255."""

WITHOUT_EFFECT = {"without_effect": True}
"""Marks a dataclass field that changes no result: a label, a place, a bound on memory. All others are part of the keys."""

ORDERED = {"ordered": True}
"""Marks a mapping whose order changes results."""

NAMES_CODE = {"names_code": True}
"""Marks text that, where it has a dot, names a function."""


def require(ok: bool, option: str, value: object, fix: str) -> None:
    """Raises UserError where the option's value is not possible; ``fix``: what to choose."""
    if not ok:
        raise UserError(f"{option}={value}: {fix}")


def require_name(option: str, value: str) -> None:
    """Raises UserError for a name that cannot be part of a file's name on every file system."""
    plain = re.fullmatch(r"\w[\w .+-]*", value) is not None and len(value.encode()) <= LONGEST_NAME
    require(plain, option, value, f"give letters, digits, spaces and . _ + - alone, at most {LONGEST_NAME} bytes")


def require_bits(option: str, value: int, low: int, high: int) -> None:
    """Raises UserError for a bit-width that there is none of."""
    require(value in (*range(low, high + 1), UNTOUCHED), option, value, f"choose {low} to {high}, or 32 to leave it untouched")


STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
"""How the dataclasses are read whose types hold their bounds: ``Annotated[int, Gt(0)]``."""
T = TypeVar("T")


def checked(kind: type[T], options: Mapping[str, Any], option: str) -> T:
    """The dataclass ``kind`` made from plain ``options``, which are called ``option.NAME``. Its types hold their bounds, and
    its ``__post_init__`` may raise ValueError. Raises UserError, one line, for the first mistake."""
    known = {field.name: field for field in fields(kind)}  # type: ignore[arg-type]
    for name in options.keys() - known.keys():
        meant = "".join(f", did you mean {near}?" for near in get_close_matches(name, known, 1))
        raise UserError(f"{option}.{name}: there is no such option{meant}; there are {', '.join(known) or 'none'}")
    for name, field in known.items():
        if name not in options and field.default is MISSING and field.default_factory is MISSING:
            raise UserError(f"{option}.{name}: is missing; give a value")
    try:
        made: T = _adapter(kind).validate_json(json.dumps(options), strict=True)
        return made
    except ValidationError as error:
        first = error.errors()[0]
        name = str(first["loc"][0]) if first["loc"] else ""
        told = f"{name}={first['input']}: {first['msg']}" if name else first["msg"].removeprefix("Value error, ")
        raise UserError(f"{option}.{told}") from error


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
"""A schema takes milliseconds."""
