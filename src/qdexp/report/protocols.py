"""Protocols: how numbers were measured. A table holds those of one protocol only, and says it.

An FID moves with n, the reference, the sampler and the extractor: numbers that differ in these do not compare. Beside the
protocol stands its floor, the FID of real images against real images, below which no difference between methods means anything.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from qdexp.errors import UserError
from qdexp.record import Record


def common_protocol(records: Sequence[Record]) -> dict[str, Any]:
    """The one protocol of all records. Raises UserError, naming them, where there is more than one; or where none is given."""
    if not records:
        raise UserError("no records: a table needs at least one cell that has run")
    protocols = {record["protocol"]["hash"]: record["protocol"] for record in records}
    if len(protocols) > 1:
        named = "; ".join(f"{protocol_line(protocol)} [{key[:8]}]" for key, protocol in protocols.items())
        raise UserError(f"numbers of different protocols do not compare, make one table of each: {named}")
    protocol: dict[str, Any] = next(iter(protocols.values()))
    return protocol


def of_protocol(records: Sequence[Record], wanted: str) -> list[Record]:
    """The records of one protocol, by its name or how its hash begins. Raises UserError, naming those there, where none is."""
    there = {record["protocol"]["hash"]: record["protocol"]["name"] for record in records}
    meant = [key for key, name in there.items() if wanted == name or key.startswith(wanted)]
    if not meant:
        known = ", ".join(f"{name} ({key[:8]})" for key, name in there.items())
        raise UserError(f"--protocol {wanted}: no record of it; protocols there: {known}")
    return [record for record in records if record["protocol"]["hash"] in meant]


def rehearsal(records: Iterable[Record]) -> list[str]:
    """The warnings beside any number of these records: none, or that weights or the extractor's are random."""
    found = list(records)
    weights = any(record["axes"].get("weights") == "random" for record in found)
    extractor = any(record["protocol"].get("random_extractor") for record in found)
    return [
        *(["weights: random, a rehearsal"] if weights else []),
        *(["extractor: random, its scores mean nothing"] if extractor else []),
        *(f"{name}: random weights, it means nothing" for name in sorted(random_measures(found))),
    ]


def random_measures(records: Iterable[Record]) -> set[str]:
    """The metrics that were measured with random weights."""
    return {
        name
        for record in records
        for name, told in record.get("measures", {}).items()
        if told.get("made_with", {}).get("weights") == "random"
    }


def protocol_line(protocol: dict[str, Any]) -> str:
    """``protocol quick: n = 1,024, 10 DPMSolverMultistep steps, features of fashion-cnn 1a2b3c4d, floor FID 1.20``."""
    floor = protocol.get("floor")
    parts = [
        f"protocol {protocol['name']}: n = {protocol['n']:,}",
        sampler_steps(protocol["steps"], protocol["scheduler"]),
        _features(protocol),
    ]
    if floor:
        parts.append(f"floor FID {floor['fid']:.2f}" + ("" if floor["n"] == protocol["n"] else f" at n = {floor['n']:,}"))
    return ", ".join(parts)


def sampler_steps(steps: int, scheduler: Mapping[str, Any]) -> str:
    """``10 DPMSolverMultistep steps``."""
    return f"{steps} {scheduler['_target_'].rpartition('.')[2].removesuffix('Scheduler')} steps"


def _features(protocol: dict[str, Any]) -> str:
    if protocol["extractor"] == "none":
        return "no reference: fidelity to full precision alone"
    return f"features of {protocol['extractor']} {protocol.get('extractor_digest', '')[:8]}".rstrip()
