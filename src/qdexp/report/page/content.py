"""The content of the page: a study, as one JSON value that it opens with, and details of each cell, which it reads later."""

import base64
import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.stats import t as student

from qdexp.layout import Layout, stage_and_key
from qdexp.record import Record, flat
from qdexp.report.comparison import Comparison, Line
from qdexp.report.conformance import HEADER, Paper
from qdexp.report.evidence import Evidence
from qdexp.report.identity import contents
from qdexp.report.page.columns import columns, rounded
from qdexp.report.rows import names
from qdexp.report.sources import Source
from qdexp.report.tables import notes
from qdexp.statistics.estimate import GROUPS, LEVEL

SAMPLES, TILE = 16, 96
"""Images of a cell that are shown, and the height in pixels that larger ones are reduced to."""
GAP = 2
FIGURED = 24
"""Lines at most whose curves and samples the page shows side by side."""


@dataclass(frozen=True)
class Content:
    """``study``: about half a KB a cell. ``details``: of each cell by its name, those first that figures show; 60 KB at most,
    of which the samples are the greater part, so they are made one after the other as they are asked for."""

    study: dict[str, Any]
    details: Iterator[tuple[str, dict[str, Any]]]


def content(source: Source, evidence: Evidence, comparison: Comparison, paper: Paper | None = None) -> Content:
    """All that the page shows."""
    failed = comparison.failed
    cells = [*comparison.cells, *(Line(name, [one], {}, {}) for name, one in zip(names(failed), failed, strict=True))]
    place = {line.records[0]["cell"]: number for number, line in enumerate(cells)}
    protocol, *said = notes(comparison)
    study = {
        "title": source.name,
        "protocol": protocol,
        "notes": said,
        "baseline": comparison.baseline,
        "missing": source.missing,
        "gaps": sorted(evidence.gaps),
        "metrics": [vars(number) for number in comparison.numbers],
        "costs": [number.key for number in comparison.costs],
        "headline": None if comparison.headline is None else comparison.headline.key,
        "quantiles": {str(groups): float(student.ppf((1 + LEVEL) / 2, groups - 1)) for groups in range(2, GROUPS + 1)},
        "cells": {"id": list(place), **columns(cells)},
        "lines": {
            "cells": [[place[record["cell"]] for record in line.records] for line in comparison.lines],
            **columns([line for line in comparison.lines if len(line.records) > 1]),  # the others are their cells
        },
        "figured": FIGURED,
        "activations": _activations([line.records[0] for line in cells], evidence),
    }
    first = {line.records[0]["cell"]: None for line in comparison.lines[:FIGURED]}
    order = [cells[place[name]] for name in first | dict.fromkeys(place)]
    return Content(study, _details(order, evidence, comparison, _executions(source.out), paper))


def _details(
    cells: list[Line], evidence: Evidence, comparison: Comparison, log: dict[str, list[str]], paper: Paper | None
) -> Iterator[tuple[str, dict[str, Any]]]:
    for line in cells:
        (record,) = line.records
        yield record["cell"], _cell(record, evidence, comparison, log) | _conformance(line, paper)


def _cell(record: Record, evidence: Evidence, comparison: Comparison, log: dict[str, list[str]]) -> dict[str, Any]:
    estimates = comparison.estimates.get(record["cell"], {})
    keys = record.get("keys", {})
    return {
        "replicates": {key: rounded(one.replicates.tolist(), 6) for key, one in estimates.items()},
        "costs": {stage: cost.get("seconds") for stage, cost in record.get("costs", {}).items()},
        "options": flat(record["config"]) | _digests(record),
        "provenance": flat(record.get("provenance", {})),
        "protocol": flat({"protocol": record.get("protocol", {}), "keys": keys}),
        "curves": rounded(record.get("curves")),
        "layers": rounded(evidence.read_json(record, "layers")),
        "coverage": record.get("coverage"),
        "samples": _samples(record, evidence),
        "error": record.get("error"),
        "log": "\n".join(entry for key in dict.fromkeys(keys.values()) for entry in log.get(key, [])),
    }


def _digests(record: Record) -> dict[str, str]:
    """The digests of the files that the cell was made from, and of those that its metrics read."""
    measures = record.get("measures", {})
    read = {f"{name}.{role}": one["sha256"] for name, told in measures.items() for role, one in told.get("files", {}).items()}
    return {f"digest of {name}": digest for name, digest in (contents(record) | read).items()}


def _conformance(line: Line, paper: Paper | None) -> dict[str, Any]:
    """The cell's list against a paper, if that has it."""
    rows = [] if paper is None else paper.rows(line)
    return {"conformance": [HEADER, *rows]} if rows else {}


def _activations(records: list[Record], evidence: Evidence) -> dict[str, Any]:
    """The activations by key: cells of one model share them."""
    by_key = {key: record for record in records if (key := record.get("keys", {}).get("activations"))}
    found = {key: (record["axes"]["model"], evidence.read_json(record, "activations")) for key, record in by_key.items()}
    return {key: {"model": model, **rounded(value)} for key, (model, value) in found.items() if value is not None}


def _executions(out: Path) -> dict[str, list[str]]:
    """The executions by a stage's key: lines that say when it was computed, and what that cost."""
    path = Layout(out).executions
    lines: dict[str, list[str]] = {}
    for line in path.read_text(errors="replace").splitlines() if path.exists() else []:
        try:
            key = stage_and_key(json.loads(line)["entry"])[1]
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError):  # truncated by a kill: the record stands
            continue
        lines.setdefault(key, []).append(line)
    return lines


def _samples(record: Record, evidence: Evidence) -> str | None:
    """The cell's first images side by side, as a data address."""
    images = evidence.images(record, SAMPLES)
    if images is None:
        return None
    tiles = [_tile(image) for image in images]
    width, height = tiles[0].size
    strip = Image.new("RGB", (len(tiles) * (width + GAP) - GAP, height))
    for place, tile in enumerate(tiles):
        strip.paste(tile, (place * (width + GAP), 0))
    small = height < TILE
    kind, settings = ("PNG", {"optimize": True}) if small else ("WEBP", {"quality": 85})
    buffer = io.BytesIO()
    (strip.convert("L") if images.shape[1] == 1 else strip).save(buffer, kind, **settings)
    return f"data:image/{kind.lower()};base64,{base64.b64encode(buffer.getvalue()).decode()}"


def _tile(image: NDArray[np.uint8]) -> Image.Image:
    """[c, h, w] as a picture of at most ``TILE`` pixels in height."""
    tile = Image.fromarray(image.transpose(1, 2, 0).repeat(4 - len(image) if len(image) == 1 else 1, axis=2))
    width, height = tile.size
    return tile if height <= TILE else tile.resize((round(width * TILE / height), TILE), Image.Resampling.LANCZOS)
