"""Reading of options by types that hold their bounds, with one line for every mistake, and words that stand for a
``_target_``."""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from typing import Annotated, Any, Literal, TypeVar
from unicodedata import normalize

from annotated_types import Ge, Gt, Lt
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, GetPydanticSchema, TypeAdapter, ValidationError
from pydantic.json_schema import GenerateJsonSchema
from pydantic_core import core_schema

from qdexp.errors import UserError, did_you_mean

UNTOUCHED = 32
"""The bit-width that means: leave it in full precision."""

READ_FROM_FILES = ("name", "shape", "network", "schedule")
"""The options of a model that its files may give where the config says null."""

RANDOM = "random"
"""The word in place of a file of weights for the architecture with seeded random numbers, to rehearse a run."""

NO_EXTRACTOR = "none"
"""The word in place of a feature extractor: images are compared with those of full precision alone."""

LONGEST_NAME = 80
"""Bytes of a name that becomes a part of file names: these may have 255, and hold two names and what is put around them."""
PART_NAME = re.compile(r"[a-z][a-z0-9_]{0,39}")
"""The name of a step or a metric, which becomes a part of file names too."""
_RESERVED = re.compile(r"(con|prn|aux|nul|com\d|lpt\d)(\..*)?", re.IGNORECASE)
"""Names of devices, on Windows whatever follows their first dot."""

WITHOUT_EFFECT = {"without_effect": True}
"""Marks a dataclass field that changes no result: a label, a place, a bound on memory. All others are part of the keys."""

ORDERED = {"ordered": True}
"""Marks a mapping whose order changes results."""

NAMES_CODE = {"names_code": True}
"""Marks text that, where it has a dot, names a function."""


def _target(node: dict[str, Any]) -> dict[str, Any]:
    if "_target_" not in node:
        raise ValueError("name its class or function as _target_")
    return node


def _name(text: str) -> str:
    """Check for a name that can be part of a file name on every file system."""
    text = normalize("NFC", text)
    if re.fullmatch(r"\w([\w .+-]*[\w+-])?", text) is None or len(text.encode()) > LONGEST_NAME:
        raise ValueError(
            f"give letters, digits, spaces and . _ + - alone, a letter or digit first, at most {LONGEST_NAME} bytes"
        )
    if _RESERVED.fullmatch(text):
        raise ValueError("is reserved by some file systems; give another name")
    return text


def _bits(low: int, high: int) -> GetPydanticSchema:
    return GetPydanticSchema(lambda _, __: core_schema.literal_schema([*range(low, high + 1), UNTOUCHED]))


Target = Annotated[dict[str, Any], AfterValidator(_target), Field(json_schema_extra={"required": ["_target_"]})]
"""A Hydra node with ``_target_``: what is built, and with which arguments."""
Text = Annotated[str, BeforeValidator(lambda given: str(given) if type(given) in (int, float) else given)]
"""YAML takes some of it for numbers: a sweep that is called 2026."""
Name = Annotated[Text, AfterValidator(_name)]
Positive = Annotated[int, Gt(0)]
Seed = Annotated[int, Ge(0), Lt(2**32)]
Finite = Field(allow_inf_nan=False)
Device = Literal["auto", "cpu", "cuda"]
_KEPT = Field(description="32: left in full precision")
WeightBits = Annotated[int, _bits(2, 8), _KEPT]
ActBits = Annotated[int, _bits(4, 8), _KEPT]
FirstActBits = Annotated[int, GetPydanticSchema(lambda _, __: core_schema.literal_schema([*range(4, 9), 16, UNTOUCHED])), _KEPT]
SoftmaxBits = Annotated[int, _bits(4, 16), _KEPT]

STRICT = ConfigDict(extra="forbid", strict=True, arbitrary_types_allowed=True)
"""The way in which a dataclass is read that has it as its ``__pydantic_config__``, with the dataclasses in it."""
T = TypeVar("T")


def checked(kind: type[T], options: object, option: str = "") -> T:
    """The dataclass ``kind`` made from a plain mapping of its options, which are called ``option.NAME``.

    Types hold the bounds of values, a ``description`` what else a message says of them. A ``__post_init__`` may raise
    ValueError, beginning with the name of a field. Raises UserError with a line for each mistake.
    """
    try:
        made: T = _adapter(kind).validate_json(json.dumps(options))
        return made
    except ValidationError as error:
        schema, lines = schema_of(kind), dict[str, list[str]]()
        for one in error.errors(include_url=False):
            place, told = _told(one, schema, option)
            lines.setdefault(place, []).append(told)
        raise UserError(*(f"{place}: {' or '.join(told)}" for place, told in lines.items())) from error


_adapter: Callable[[Any], TypeAdapter[Any]] = cache(TypeAdapter)
"""It takes milliseconds to be made."""


class _Lenient(GenerateJsonSchema):
    """Leaves open what JSON cannot say: steps may have defaults of any type."""

    def handle_invalid_for_json_schema(self, schema: Any, error_info: str) -> dict[str, Any]:
        return {}

    def emit_warning(self, kind: Any, detail: str) -> None: ...


def _schema_of(kind: type) -> dict[str, Any]:
    return _adapter(kind).json_schema(schema_generator=_Lenient)


schema_of: Callable[[Any], dict[str, Any]] = cache(_schema_of)
"""The JSON schema of a dataclass."""


def schema_of_option(kind: type, option: str) -> dict[str, Any]:
    """The JSON schema of one option of ``kind``; empty for an option in a mapping that takes any.

    Raises UserError where there is none of this name.
    """
    names = option.split(".")
    schema = schema_of(kind)
    part, depth = _part(schema, names)
    if depth < len(names) and "properties" in part:
        elsewhere = [path for path in _paths(schema, schema) if path.endswith(f".{names[-1]}")]
        raise UserError(f"{option}: {_unknown(names[depth], part, elsewhere)}")
    if depth < len(names) and part.get("type", "object") != "object":
        raise UserError(f"{option}: {'.'.join(names[:depth])} is a single value and has no options of its own")
    return part if depth == len(names) else {}


def _paths(schema: dict[str, Any], part: dict[str, Any]) -> Iterator[str]:
    """The names of all options in a ``part`` of a schema."""
    for name in part.get("properties", {}):
        inner, _ = _part(schema | part, [name])
        yield name
        yield from (f"{name}.{path}" for path in _paths(schema, inner))


def _unknown(name: str, part: Mapping[str, Any], elsewhere: Sequence[str] = ()) -> str:
    """``elsewhere``: options that are called so, in other places."""
    known = list(part["properties"])
    meant = f", did you mean {' or '.join(elsewhere)}?" if elsewhere else did_you_mean(name, known)
    return f"there is no such option{meant}; there are {', '.join(known) or 'none'}"


def _told(error: Mapping[str, Any], schema: dict[str, Any], option: str) -> tuple[str, str]:
    """The option that a mistake is in, with its value, and what to do."""
    value, told = error["input"], error["msg"].removeprefix("Value error, ").replace(" after validation", "")
    part, depth = _part(schema, error["loc"])
    unknown = error["type"] in ("unexpected_keyword_argument", "extra_forbidden")
    names = error["loc"] if unknown else error["loc"][:depth]  # what is left out are members of a union
    place = (option + "".join(f"[{one}]" if isinstance(one, int) else f".{one}" for one in names)).lstrip(".")
    if error["type"] == "missing":
        return place, "is missing; give a value"
    if unknown:
        return place, _unknown(str(names[-1]), part)
    if error["type"] == "value_error" and "properties" in part:
        inner, _, told = told.partition(": ")
        return f"{place}.{inner}".lstrip("."), told
    told = re.sub(r"^\w+ should ", "has to ", told).replace("an object", "a mapping").replace("a valid array", "a list")
    more = f" ({part['description']})" if "description" in part and "properties" not in part else ""
    return f"{place}={value if isinstance(value, str) else json.dumps(value)}", f"{told}{more}"


def _part(schema: dict[str, Any], names: Sequence[int | str]) -> tuple[dict[str, Any], int]:
    """The part of a JSON schema at ``names``, or as far along these as it goes, and how far that is."""
    found, depth = schema, 0
    while True:
        while "$ref" in found or "anyOf" in found:  # the first of several: the others mostly say that it may be null
            said = {key: value for key, value in found.items() if key not in ("$ref", "anyOf")}
            found = (schema["$defs"][found["$ref"].rpartition("/")[2]] if "$ref" in found else found["anyOf"][0]) | said
        name = names[depth] if depth < len(names) else None
        inner = found.get("items") if isinstance(name, int) else found.get("properties", {}).get(name)
        inner = inner or (found.get("additionalProperties") if isinstance(name, str) else None)
        if not isinstance(inner, dict):
            return found, depth
        found, depth = inner, depth + 1
