"""The types of a record's parts, as far as anything reads them; other keys are ignored. Docs show the meanings from here."""

import math
import re
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


_PLAIN = r"[^./\\\x00-\x1f][^/\\\x00-\x1f]{0,249}"
FileName = Annotated[str, Field(pattern=f"^{_PLAIN}$")]
Inside = Annotated[str, AfterValidator(_inside)]


@dataclass
class File:
    """A file that a cell was made from.

    Attributes:
        path: Its path when it was read.
        sha256: The SHA-256 of its content then.
    """

    path: str
    sha256: str


@dataclass
class Axes:
    """The axes of the cell: flat, to group by.

    Attributes:
        method: The method, or ``QUANTIZER-CALIB`` where none was named.
        model: The model's name.
        quant: The format, such as ``w4a8``, with what is out of the ordinary, such as ``w4a8+first_a16``.
        quantizer: The choice of ``quantizer``; ``none`` in full precision.
        calib: The calibration strategy; ``none`` where nothing is calibrated.
        weight_bits: Bits of a weight; 32: unquantized.
        act_bits: Bits of an activation; 32: unquantized.
        seed: Moves calibration and learning.
    """

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
    """The FID of real images, which the best model would have.

    Attributes:
        fid: FID of held-out real images against the reference.
        n: The number of images that it was measured on.
    """

    fid: StrictInt | StrictFloat
    n: StrictInt


@dataclass
class Protocol:
    """The protocol that the numbers were measured under. Conditional models add guidance and classes or the digest of the
    prompts.

    Attributes:
        hash: Equal for protocols that are the same in everything; only numbers of one hash may be compared.
        name: The choice of ``protocol``.
        n: The number of images.
        steps: Steps of the sampler.
        scheduler: The scheduler with its options.
        extractor: The feature extractor; ``none`` where images are compared with full precision alone.
        extractor_digest: The SHA-256 of what the extractor computes with.
        floor: The FID of real images, where the reference tells it.
    """

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
    """The way in which a number is shown (``qdexp.numbers``): what differs from the defaults.

    Attributes:
        title: The heading of its column; by default its key.
        kind: ``quality`` (default), ``fidelity`` to full precision, ``cost``, ``share`` of a whole, or ``floor``.
        shown: Where: ``overview`` (tables and page), ``brief`` (the table that a sweep ends with), ``alone`` (the same where
            nothing is compared with real images), ``bars`` (figures).
        factor: The factor by which it is multiplied where it is shown.
        digits: Digits behind the point, or significant ones.
        significant: Whether ``digits`` are significant ones.
        higher: Whether a larger number is better.
        differences: Whether paired differences to the baseline are shown.
        axis: The label of an axis, where the title is too long for it.
    """

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
    """One metric of the cell.

    Attributes:
        numbers: The description of each key in ``metrics`` that it gives.
        made_with: What it measures with beside the protocol, such as versions; tables never mix two.
        files: The path and the SHA-256 of each file that it reads, by the file's role.
        features: The key of the features that it reads; null: none.
    """

    numbers: dict[str, Described]
    made_with: dict[str, JsonValue] = field(default_factory=dict)
    files: dict[str, File] = field(default_factory=dict)
    features: str | None = None


@dataclass
class Made:
    """One stage of the cell. The git ``commit`` of the process that made it, and whether that was ``dirty``, stand beside.

    Attributes:
        key: The key of the stage.
        machines: Digests of the machines that made it.
        accepted: The keys that it had before ``python -m qdexp.store accept`` gave it this one.
    """

    key: str
    machines: list[str] = field(default_factory=list)
    accepted: list[str] = field(default_factory=list)


@dataclass
class Shape:
    """One cell. A record also has ``format``, 2, and where something was learned ``reconstruction``: by the slot of the step,
    the relative squared error of each ``block`` on the held-out rows, ``before`` and as ``learned``, and whether it was
    ``kept``.

    Attributes:
        cell: The cell's name, which is the name of the file.
        status: Whether the cell is complete or has failed.
        axes: What the cell was made of.
        config: The whole config as it was run, frozen.
        keys: The key of every stage, by its role; its result is ``store/STAGE-KEY``. ``heldout`` is a trajectory,
            ``full_precision`` are images; the method's steps have the names of their slots, metrics their own names.
        protocol: How the numbers were measured.
        identity: Equal for cells that differ in nothing but their seed.
        metrics: The numbers, by their keys; always there in a complete record. null: the number was not finite.
        measures: The metrics by their names, with how their numbers are described.
        curves: ``timestep``, ``teacher_forced``, ``free_running``: the relative squared error of the noise prediction at each
            call of the sampler, from full-precision inputs and along the quantized network's own trajectory.
        costs: ``seconds`` and ``peak_memory_mb`` of each stage when it was computed, and ``total`` from an empty store;
            ``resumed`` where the seconds lack those of a process that was killed.
        stages: By whom and from which code each stage was made.
        files: The path and the SHA-256 of each file outside the store that the cell was made from, by the file's role.
        artifacts: The folders ``samples`` and ``checkpoint``, relative to the output folder.
        error: The ``stage``, ``type``, ``message`` and ``traceback`` of a cell that failed.
        coverage: For quantized cells ``macs`` and ``parameters`` by bits (``w4a8``; ``a8a8``: products of two activations;
            ``w1a16``, ``w16a16``: rotations and low-rank branches; ``full``) as shares of the whole; ``asked``: the share that
            the bits ask for; ``quantized``: the share of that; ``left_out``: by ``kind`` the ``count``, first ``names``,
            ``parameters`` and ``macs``; ``total``; ``weights_left_out``: parameters of products in full precision.
        provenance: Time, command, git commit and whether dirty, versions, host, seeds; ``machine``: its digest, processor,
            cores, threads, memory, torch build, and of a CUDA device name, memory, driver and version.
    """

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
    files: dict[str, File] = field(default_factory=dict)
    artifacts: dict[str, Inside] = field(default_factory=dict)
    error: dict[str, str | None] = field(default_factory=dict)
    coverage: dict[str, JsonValue] = field(default_factory=dict)
    provenance: dict[str, JsonValue] = field(default_factory=dict)


_SHAPE = TypeAdapter(Shape)

DEEPEST = 64
"""Levels of a part: real ones have ten."""
LARGEST = 2**1000
"""Beyond any integer of a record; what is larger may be no float."""


def check(record: dict[str, Any]) -> None:
    """Raises ValueError with one line where a part is missing or of another type, a number not finite, or text no Unicode."""
    for part, content in record.items():
        if problem := _problem({part: content}):
            raise ValueError(f"{unicode(part)}: {problem}")
    try:
        _SHAPE.validate_python(record)
    except ValidationError as error:
        raise ValueError(first_mistake(error)) from error
    needed = {"metrics"} if record["status"] == "complete" else set()
    needed |= {"identity", "files"} if record.get("format") != 1 else set()
    for part in sorted(needed - record.keys()):
        raise ValueError(f"{part}: Field required")


def is_file_name(text: str) -> bool:
    """Whether a file in a folder may be called so: neither hidden nor elsewhere."""
    return re.fullmatch(_PLAIN, text) is not None


def unicode(text: str) -> str:
    """The text, without halves of characters, as JSON can hold them and no file or terminal can."""
    return text.encode(errors="replace").decode()


def _problem(content: Any) -> str:
    """The fault of some value within; empty where there is none."""
    waiting = [(content, 0)]
    while waiting:
        value, depth = waiting.pop()
        if isinstance(value, dict | list):
            if depth > DEEPEST:
                return "nested too deep"
            inner = [*value, *value.values()] if isinstance(value, dict) else value
            waiting += [(item, depth + 1) for item in inner]
        elif isinstance(value, float) and not math.isfinite(value):
            return "holds a number that is not finite"
        elif isinstance(value, int) and abs(value) > LARGEST:
            return "holds a number that is too large"
        elif isinstance(value, str) and unicode(value) != value:
            return "holds text that is no Unicode"
    return ""
