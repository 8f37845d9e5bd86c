"""The comparison of methods as one table, for the terminal and as Markdown.

A table holds cells of one protocol only: an FID moves with n, the reference, the sampler and the extractor, and numbers that
differ in them do not compare. The protocol is said below the table, with its floor: the FID of real images against real images,
below which no difference between methods means anything.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any, Literal

from rich.box import SIMPLE_HEAD
from rich.markup import escape
from rich.table import Table

from qdexp.errors import UserError
from qdexp.report.records import Record

NONE = "-"
LADDER = ("fp", "ptq", "timestep_aware", "reconstruction", "qdiffusion")
"""Order of the methods' rows, one ingredient added a rung; others follow."""

SHOWN = {"method", "weight_bits", "act_bits", "calib", "protocol"}
"""Axes that the fixed columns, or the caption, already tell."""
UNTOLD = ("out", "sweep", "tracker", "device", "cluster", "recon.cache_gb")
"""Options that do not tell one measurement from another."""
LINE = 100
"""Characters of the longest line that tells of a failed cell."""


@dataclass(frozen=True)
class Column:
    """One column: its header (a line a list entry), and the text of a record's cell."""

    header: tuple[str, ...]
    text: Callable[[Record], str]
    justify: Literal["left", "right"] = "right"


def ladder_table(records: list[Record]) -> Table:
    """The table for the terminal, at most 110 columns wide. Raises UserError where protocols differ or nothing is given."""
    caption = "\n".join([_caption(records), *_failures(records)])
    table = Table(box=SIMPLE_HEAD, caption=escape(caption), caption_justify="left", pad_edge=False, padding=(0, 1, 0, 0))
    columns = _columns(records)
    for column in columns:
        table.add_column("\n".join(column.header), justify=column.justify, no_wrap=column.justify == "right", overflow="fold")
    for record in in_order(records):
        table.add_row(*(escape(column.text(record)) for column in columns))
    return table


def to_markdown(records: list[Record]) -> str:
    """The same table as GitHub Markdown, the caption below it; ends with a newline. Raises as ``ladder_table`` does."""
    caption, columns = _caption(records), _columns(records)
    rows = [[" ".join(column.header) for column in columns]]
    rows.append(["---:" if column.justify == "right" else "---" for column in columns])
    rows += [[column.text(record) for column in columns] for record in in_order(records)]
    lines = ["| " + " | ".join(text.replace("|", "\\|") for text in row) + " |" for row in rows]
    failures = [f"- {line}" for line in _failures(records)]
    return "\n".join([*lines, "", f"{caption}.", *([""] if failures else []), *failures]) + "\n"


def common_protocol(records: list[Record]) -> dict[str, Any]:
    """The one protocol of all records. Raises UserError, naming them, where there is more than one; or where none is given."""
    if not records:
        raise UserError("no records: a table needs at least one cell that has run")
    protocols = {record["protocol"]["hash"]: record["protocol"] for record in records if record.get("protocol")}
    if len(protocols) > 1:
        named = "; ".join(f"{protocol_line(protocol)} [{key[:8]}]" for key, protocol in protocols.items())
        raise UserError(f"numbers of different protocols do not compare, make one table of each: {named}")
    return next(iter(protocols.values()), {})


def _caption(records: list[Record]) -> str:
    protocol, models = common_protocol(records), {str(record["axes"].get("model")) for record in records}
    name = [*models] if len(models) == 1 else []
    return ", ".join([*name, *rehearsal(records), protocol_line(protocol)])


def rehearsal(records: Iterable[Record]) -> list[str]:
    """What has to be said beside any number of these records: nothing, or that weights are random."""
    return ["weights: random, a rehearsal"] if any(record["axes"].get("weights") == "random" for record in records) else []


def protocol_line(protocol: dict[str, Any]) -> str:
    """``protocol quick: n = 1,024, 10 DPMSolverMultistep steps, features of fashion-cnn 1a2b3c4d, floor FID 1.20``."""
    if not protocol:
        return "no protocol recorded"
    sampler = protocol["scheduler"]["_target_"].rpartition(".")[2].removesuffix("Scheduler")
    floor = protocol.get("floor")
    parts = [
        f"protocol {protocol['name']}: n = {protocol['n']:,}",
        f"{protocol['steps']} {sampler} steps",
        f"features of {protocol['extractor']} {protocol.get('extractor_digest', '')[:8]}".rstrip(),
    ]
    if floor:
        parts.append(f"floor FID {floor['fid']:.2f}" + ("" if floor["n"] == protocol["n"] else f" at n = {floor['n']:,}"))
    return ", ".join(parts)


def _failures(records: list[Record]) -> list[str]:
    """One line a failed cell: where and why."""
    failed = [record for record in in_order(records) if record["status"] != "complete"]
    return [_failure(record["cell"], record.get("error", {})) for record in failed]


def _failure(cell: str, error: dict[str, Any]) -> str:
    message = (str(error.get("message", "")).splitlines() or [""])[0]
    line = f"failed: {cell} in {error.get('stage', '?')}: {error.get('type', '?')}: {message}"
    return line if len(line) <= LINE else f"{line[: LINE - 1]}…"


def in_order(records: list[Record]) -> list[Record]:
    """Full precision first, then a ladder for each pair of bit-widths, widest first; then by what tells equal methods apart."""
    telling = _telling(records, _labels())

    def order(record: Record) -> tuple[Any, ...]:
        axes = record["axes"]
        method = axes["method"]
        rank = LADDER.index(method) if method in LADDER else len(LADDER)
        widths = (0, 0) if full_precision(record) else (-axes["weight_bits"], -axes["act_bits"])
        told = [_by_value(column.text(record)) for column in telling]
        return str(axes.get("model")), not full_precision(record), widths, rank, method, told, record["cell"]

    return sorted(records, key=order)


def _by_value(text: str) -> tuple[float, str]:
    """Numbers by their value, before words."""
    try:
        return float(text), ""
    except ValueError:
        return math.inf, text


def row_names(records: list[Record]) -> list[str]:
    """A short name for each record, for a picture: the method, and what else tells it from the others."""
    method, bits, calib = _labels()
    several = len({_bits(record) for record in records if not full_precision(record)}) > 1
    telling = [*([bits] if several else []), *_telling(records, [method, bits, calib])]
    names = []
    for record in records:
        told = [column.text(record) for column in telling if column is not bits or not full_precision(record)]
        names.append(" ".join([method.text(record), *told]))
    return names


def _labels() -> list[Column]:
    return [
        Column(("method",), lambda record: record["axes"]["method"], "left"),
        Column(("bits",), _bits, "left"),
        Column(("calib",), _calib, "left"),
    ]


def _columns(records: list[Record]) -> list[Column]:
    fixed = _labels()
    numbers = [
        Column(("FID",), _fid),
        Column(("IS",), _number("isc", ".2f")),
        Column(("KID", "x1000"), _kid),
        Column(("CLIP",), _number("clip", ".2f")),
        Column(("noise", "error", "x1000"), _noise_error),
        Column(("MSE to FP", "x1000"), _distance),
        Column(("nominal", "MB"), _number("size_nominal_mb", ".2f")),
        Column(("stored", "MB"), _number("size_stored_mb", ".2f")),
        Column(("time",), _time),
    ]
    if any((_metric(record, "coverage_macs") or 1.0) < 1 for record in records):
        numbers.insert(-1, Column(("quantized", "MACs"), _number("coverage_macs", ".1%")))
    return [*_telling(records, fixed), *fixed, *(column for column in numbers if _used(column, records))]


def _used(column: Column, records: list[Record]) -> bool:
    return column.header == ("FID",) or any(column.text(record) != NONE for record in records)


def _telling(records: list[Record], fixed: list[Column]) -> list[Column]:
    """Columns of what else is needed to tell rows apart: other axes, the model where it varies, then single options."""
    axes = sorted({name for record in records for name in record["axes"]} - SHOWN)
    single = sorted({name for record in records for name in options(record)})
    found: list[Column] = []
    for column in [*map(_axis, axes), *(_option(name, single) for name in single)]:
        values: dict[tuple[str, ...], set[str]] = {}
        for record in records:
            label = tuple(known.text(record) for known in [*fixed, *found])
            values.setdefault(label, set()).add(column.text(record))
        models = column.header == ("model",) and len(set().union(*values.values())) > 1
        if models or any(len(several) > 1 for several in values.values()):
            found.append(column)
    return found


def options(record: Record) -> dict[str, Any]:
    """The frozen config as ``{"calib.timesteps": 10}``, without what does not change a number."""
    return {name: value for name, value in flat(record.get("config", {})).items() if not name.startswith(UNTOLD)}


def flat(tree: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """``{"calib": {"timesteps": 10}}`` as ``{"calib.timesteps": 10}``."""
    leaves: dict[str, Any] = {}
    for name, value in tree.items():
        leaves |= flat(value, f"{prefix}{name}.") if isinstance(value, dict) else {f"{prefix}{name}": value}
    return leaves


def _option(name: str, among: list[str]) -> Column:
    """Called by its last words, as many as tell it from the other options."""
    words = name.split(".")
    tails = (".".join(words[-count:]) for count in range(1, len(words) + 1))
    short = next(tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in among) == 1 or tail == name)
    return Column((short,), lambda record: str(options(record).get(name, NONE)), "left")


def _axis(name: str) -> Column:
    return Column((name,), lambda record: str(record["axes"].get(name, NONE)), "left")


def full_precision(record: Record) -> bool:
    """Whether the cell quantizes nothing."""
    return record["axes"]["method"] == "fp" or record["axes"].get("quantizer") == "none"


def _bits(record: Record) -> str:
    axes = record["axes"]
    return "W32A32" if full_precision(record) else f"W{axes['weight_bits']}A{axes['act_bits']}"


def _calib(record: Record) -> str:
    return NONE if full_precision(record) else str(record["axes"].get("calib") or NONE)


def _metric(record: Record, name: str) -> float | None:
    value = record.get("metrics", {}).get(name)
    return None if value is None else float(value)


def _number(name: str, form: str) -> Callable[[Record], str]:
    def text(record: Record) -> str:
        value = _metric(record, name)
        return NONE if value is None else format(value, form)

    return text


def _fid(record: Record) -> str:
    return _number("fid", ".2f")(record) if record["status"] == "complete" else "failed"


def _kid(record: Record) -> str:
    kid, spread = _metric(record, "kid"), _metric(record, "kid_std")
    if kid is None:
        return NONE
    return f"{1000 * kid:.2f}" if spread is None else f"{1000 * kid:.2f} ± {1000 * spread:.2f}"


def _distance(record: Record) -> str:
    return _significant(_metric(record, "distance"))


def _significant(value: float | None) -> str:
    """A thousandfold in three significant digits: errors span orders of magnitude between 8 and 4 bits."""
    if value is None:
        return NONE
    return "0" if value == 0 else f"{1000 * value:#.3g}".rstrip(".")


def _noise_error(record: Record) -> str:
    return _significant(_metric(record, "noise_error"))


def _time(record: Record) -> str:
    seconds = record.get("costs", {}).get("total", {}).get("seconds")
    if seconds is None:
        return NONE
    if seconds < 60:
        return f"{seconds:.1f} s"
    return f"{seconds / 60:.1f} min" if seconds < 3600 else f"{seconds / 3600:.1f} h"
