"""Reads a ``.wandb`` transaction log back without W&B's own reader.

A header of 7 bytes, then blocks of 32 KiB (the first counts the header). A block holds chunks: crc32 of kind and data (u32),
length (u16), kind (u8), data; what is left at its end and too short for a chunk's header is padding. A record is one full
chunk, or a first, middles and a last. Numbers are little-endian.
"""

import json
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import wandb.proto.wandb_internal_pb2 as wire

HEADER = b":W&B\xe1\xbe\x00"
BLOCK = 32 * 1024
FULL, FIRST, MIDDLE, LAST = 1, 2, 3, 4


@dataclass
class Run:
    """The content of one log."""

    run: Any = None
    exit_code: int | None = None
    config: dict[str, Any] = field(default_factory=dict)
    summary: dict[str, Any] = field(default_factory=dict)
    history: list[dict[str, Any]] = field(default_factory=list)
    metrics: dict[str, Any] = field(default_factory=dict)
    artifacts: list[Any] = field(default_factory=list)
    output: list[str] = field(default_factory=list)


def chunks(raw: bytes) -> Iterator[tuple[int, bytes]]:
    """Kind and data of each chunk. Raises ValueError on a wrong header or checksum, or a truncated end."""
    if not raw.startswith(HEADER):
        raise ValueError("not a .wandb file")
    at = len(HEADER)
    while at < len(raw):
        if BLOCK - at % BLOCK < 7:
            at += BLOCK - at % BLOCK
            continue
        if len(raw) - at < 7:
            raise ValueError(f"corrupt at byte {at}")
        crc, length, kind = struct.unpack_from("<IHB", raw, at)
        data = raw[at + 7 : at + 7 + length]
        if len(data) < length or zlib.crc32(bytes([kind]) + data) != crc:
            raise ValueError(f"corrupt at byte {at}")
        yield kind, data
        at += 7 + length


def records(raw: bytes) -> Iterator[Any]:
    """The protobuf records of a log. Raises ValueError as ``chunks`` does, and where a record's parts are not all there."""
    parts: list[bytes] = []
    for kind, data in chunks(raw):
        if bool(parts) != (kind in (MIDDLE, LAST)):
            raise ValueError(f"chunk of kind {kind} out of order")
        parts.append(data)
        if kind in (FULL, LAST):
            record = wire.Record()  # type: ignore[attr-defined]  # made at import, out of mypy's sight
            record.ParseFromString(b"".join(parts))
            parts = []
            yield record
    if parts:
        raise ValueError("the last record is not whole")


def _items(items: Any) -> dict[str, Any]:
    return {item.key or ".".join(item.nested_key): json.loads(item.value_json) for item in items}


def read(path: Path) -> Run:
    """The run in ``path``: updates applied in the order they were written. Raises ValueError where the log is not whole."""
    run = Run()
    for record in records(path.read_bytes()):
        kind = record.WhichOneof("record_type")
        value = getattr(record, kind)
        if kind == "run":
            run.run = value
            run.config |= _items(value.config.update)
        elif kind == "config":
            run.config |= _items(value.update)
        elif kind == "summary":
            run.summary |= _items(value.update)
        elif kind == "history":
            run.history.append(_items(value.item))
        elif kind == "metric":
            run.metrics[value.name] = value
        elif kind == "artifact":
            run.artifacts.append(value)
        elif kind in ("output", "output_raw"):
            run.output.append(value.line)
        elif kind == "exit":
            run.exit_code = value.exit_code
    return run
