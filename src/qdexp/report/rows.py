"""The order of rows, and their names: a method, and what else tells a row from the others.

Names tell the content first: the weights, then options, then where and by which code a cell was made. A seed is told last,
since rows that differ in their seed alone are one.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import PurePath
from typing import Any

from qdexp.record import Record, flat
from qdexp.report.identity import PLACES, contents, full_precision, grouped, network, options

LADDER = ("fp", "ptq", "timestep_aware", "reconstruction", "qdiffusion")
"""Order of the methods' rows, one ingredient added by each; others follow."""
AXES = ("model", "quant", "quantizer", "calib", "recon", "backend", "weights")
ENVIRONMENT = ("machine.", "python", "versions.", "git_commit")
"""The parts of a cell's provenance that explain other keys."""
DIGITS = 8
"""The digits of a digest or key that are shown."""

Trait = Callable[[Record], str | None]
"""A trait that may tell a record from another; None where it has no such thing."""


def in_order(records: Sequence[Record]) -> list[Record]:
    """Network by network: full precision first, then an ablation for each pair of bit-widths, widest first; then by name."""
    networks = {name: place for place, name in enumerate(dict.fromkeys(map(network, records)))}

    def order(named: tuple[Record, str]) -> tuple[Any, ...]:
        (record, name), axes = named, named[0]["axes"]
        rank = LADDER.index(axes["method"]) if axes["method"] in LADDER else len(LADDER)
        widths = (0, 0) if full_precision(record) else (-axes["weight_bits"], -axes["act_bits"])
        place = networks[network(record)]
        return str(axes.get("model")), place, not full_precision(record), widths, rank, _natural(name), record["cell"]

    return [record for record, _ in sorted(zip(records, names(records), strict=True), key=order)]


def _natural(name: str) -> list[tuple[float, str]]:
    """Numbers by their value."""
    parts = re.split(r"(\d+(?:\.\d+)?)", name)
    return [(float(part), "") if place % 2 else (0.0, part) for place, part in enumerate(parts)]


def names(records: Sequence[Record]) -> list[str]:
    """A name for each record: that of its row, and its seed where the row has several."""
    found = {}
    groups = grouped(records)
    for name, group in zip(row_names(groups), groups, strict=True):
        for record in group:
            found[record["cell"]] = f"{name} seed={record['axes'].get('seed')}" if len(group) > 1 else name
    return [found[record["cell"]] for record in records]


def row_names(groups: Sequence[Sequence[Record]]) -> list[str]:
    """A name for each row, whose records differ in their seed alone: no two are the same."""
    firsts = [group[0] for group in groups]
    several = len({bits(record) for record in firsts if not full_precision(record)}) > 1
    found = [f"{r['axes']['method']} {bits(r)}" if several and not full_precision(r) else r["axes"]["method"] for r in firsts]
    return told_apart(found, firsts)


def told_apart(found: list[str], records: Sequence[Record]) -> list[str]:
    """The names ``found`` of the records, with what else differs among those that are called alike: no two are the same.

    Of a record that is still to come its axes, config, files and cell are enough.
    """
    for trait in _traits(records):
        if len(set(found)) == len(found):
            break
        told = [trait(record) for record in records]
        values = defaultdict[str, set[str | None]](set)
        for name, text in zip(found, told, strict=True):
            values[name].add(text)
        shown = [len(values[name]) > 1 and text is not None for name, text in zip(found, told, strict=True)]
        found = [f"{name} {text}" if show else name for name, text, show in zip(found, told, shown, strict=True)]
    return found


def bits(record: Record) -> str:
    """``W4A8``."""
    axes = record["axes"]
    return "W32A32" if full_precision(record) else f"W{axes['weight_bits']}A{axes['act_bits']}"


def _traits(records: Sequence[Record]) -> Iterator[Trait]:
    """The traits in the order in which they are added to a name, where those before do not tell rows apart."""
    yield lambda record: record["axes"].get("model")
    for name in sorted({name for record in records for name in contents(record)}):
        yield _file(name, records)
    for axis in AXES[1:]:
        yield lambda record, axis=axis: _equation(axis, record["axes"].get(axis))  # type: ignore[misc]
    for read in (options, _environment, _places, lambda record: {"seed": record["axes"].get("seed")}):
        known, told = _telling(read, records)
        yield from (_value(name, known, told) for name in sorted(set().union(*told.values())))
    yield lambda record: f"key={record['cell'].rpartition('-')[2][:DIGITS]}"
    yield lambda record: record["cell"]


def _telling(
    read: Callable[[Record], dict[str, Any]], records: Sequence[Record]
) -> tuple[list[str], dict[str, dict[str, Any]]]:
    """The names of all that is read, and by cell what of it is not the same in all records: most is."""
    first, differing = read(records[0]), set[str]()
    known = dict.fromkeys(first)
    for record in records[1:]:
        told = read(record)
        known |= dict.fromkeys(told)
        differing |= first.keys() ^ told.keys()
        differing |= {name for name in first.keys() & told.keys() if _other(first[name], told[name])}
    return list(known), {
        one["cell"]: {name: value for name, value in read(one).items() if name in differing} for one in records
    }


def _other(one: Any, other: Any) -> bool:
    """Whether they differ as they are written: 1 and 1.0 do."""
    return one is not other and (type(one) is not type(other) or one != other)


def _environment(record: Record) -> dict[str, Any]:
    told = flat(record.get("provenance", {}))
    return {name: value for name, value in told.items() if name.startswith(ENVIRONMENT)}


def _places(record: Record) -> dict[str, Any]:
    return {name: value for name, value in flat(record["config"]).items() if name in PLACES}


def _value(name: str, among: Sequence[str], told: Mapping[str, dict[str, Any]]) -> Trait:
    """``timesteps=10``, of what is ``told`` of each cell: called by its last words, as many as tell it from the others."""
    words = name.split(".")
    tails = (".".join(words[-count:]) for count in range(1, len(words) + 1))
    short = next(tail for tail in tails if sum(f".{other}".endswith(f".{tail}") for other in among) == 1 or tail == name)
    return lambda record: _equation(short, told[record["cell"]].get(name))


def _equation(name: str, value: Any) -> str | None:
    return None if value is None else f"{name}={value}"


def _file(name: str, records: Sequence[Record]) -> Trait:
    """``weights=tuned.safetensors``, or a digest where the same name stands for several contents."""
    held = {one["files"][name]["sha256"]: PurePath(one["files"][name]["path"]).name for one in records if name in one["files"]}
    plain = len(set(held.values())) == len(held)

    def text(record: Record) -> str | None:
        digest = contents(record).get(name)
        return None if digest is None else f"{name}={held[digest] if plain else digest[:DIGITS]}"

    return text
