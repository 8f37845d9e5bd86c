"""What a record has to be to be read: the types of its parts, as far as anything reads them. What else it holds is ignored."""

from dataclasses import dataclass, field
from pathlib import PurePosixPath
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, Field, JsonValue, StrictBool, StrictFloat, StrictInt, TypeAdapter, ValidationError

from qdexp.files import first_mistake

# strict where others would take "3" or "yes", which stay what they are
Number = StrictInt | StrictFloat | None
"""null: it was not finite."""


def _inside(path: str) -> str:
    parts = PurePosixPath(path).parts
    if not parts or parts[0] == "/" or ".." in parts or "\\" in path or "\0" in path:
        raise ValueError("leads out of the output folder")
    return path


def _with_target(node: dict[str, JsonValue]) -> dict[str, JsonValue]:
    if not isinstance(node.get("_target_"), str):
        raise ValueError("names no _target_")
    return node


FileName = Annotated[str, Field(pattern=r"^[^./\\\x00-\x1f][^/\\\x00-\x1f]*$")]
Inside = Annotated[str, AfterValidator(_inside)]


@dataclass
class Axes:
    method: str
    model: str = ""
    quant: str = ""
    quantizer: str = "none"
    calib: str = "none"
    weight_bits: StrictInt = 32
    act_bits: StrictInt = 32
    seed: StrictInt = 0


@dataclass
class Floor:
    fid: StrictInt | StrictFloat
    n: StrictInt


@dataclass
class Protocol:
    hash: Annotated[str, Field(min_length=1)]
    name: str
    n: StrictInt
    steps: StrictInt
    scheduler: Annotated[dict[str, JsonValue], AfterValidator(_with_target)]
    extractor: str
    extractor_digest: str = ""
    floor: Floor | None = None


@dataclass
class Described:
    """A number, see ``qdexp.numbers``."""

    title: str = ""
    kind: str = ""
    shown: list[str] = field(default_factory=list)
    factor: StrictInt | StrictFloat = 1.0
    digits: Annotated[StrictInt, Field(ge=0, le=20)] = 2
    significant: StrictBool = False
    higher: StrictBool = False
    differences: StrictBool = False
    axis: str = ""


@dataclass
class Measure:
    numbers: dict[str, Described]
    made_with: dict[str, JsonValue] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    features: str | None = None


@dataclass
class Made:
    key: str
    machines: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)


@dataclass
class Shape:
    """``metrics`` of a complete record are there, too (``check``)."""

    cell: FileName
    status: Literal["complete", "failed"]
    axes: Axes
    config: dict[str, JsonValue]
    keys: dict[str, FileName]
    protocol: Protocol
    identity: str = ""
    metrics: dict[str, Number] = field(default_factory=dict)
    measures: dict[str, Measure] = field(default_factory=dict)
    curves: dict[str, list[Number]] = field(default_factory=dict)
    costs: dict[str, dict[str, Number]] = field(default_factory=dict)
    stages: dict[str, Made] = field(default_factory=dict)
    files: dict[str, dict[str, str]] = field(default_factory=dict)
    artifacts: dict[str, Inside] = field(default_factory=dict)
    error: dict[str, str | None] = field(default_factory=dict)
    coverage: dict[str, JsonValue] = field(default_factory=dict)
    provenance: dict[str, JsonValue] = field(default_factory=dict)


_SHAPE = TypeAdapter(Shape)


def check(record: dict[str, Any]) -> None:
    """Raises ValueError with one line where a part is missing or of another type."""
    try:
        _SHAPE.validate_python(record)
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from error
    if record["status"] == "complete" and "metrics" not in record:
        raise ValueError("metrics: Field required")
