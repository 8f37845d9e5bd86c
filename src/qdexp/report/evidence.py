"""Evidence for a record's numbers: the arrays of its stages in the store, and the estimates made from them.

A record may be read without its store, on another machine: then there are numbers and no intervals, and ``gaps`` says so.
"""

import fnmatch
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from qdexp import entries, files
from qdexp.errors import UserError
from qdexp.layout import Layout, entry_name
from qdexp.record import Record
from qdexp.report.identity import full_precision
from qdexp.report.rows import bits
from qdexp.statistics.estimate import Estimate


class Evidence:
    """Reads the store beside the records in ``out``; ``gaps`` collects what was not there."""

    def __init__(self, out: Path) -> None:
        self.out, self._layout = out, Layout(out)
        self.gaps: set[str] = set()

    def folder(self, record: Record, stage: str) -> Path | None:
        """The store entry of the record's stage, if it is there."""
        key = record.get("keys", {}).get(stage)
        if not key:
            return None
        path = self._layout.entry(entry_name(stage, key))
        return path if path.is_dir() else None

    def read_json(self, record: Record, stage: str) -> Any:
        """``STAGE.json`` of the record's stage, or None."""
        folder = self.folder(record, stage)
        return None if folder is None else files.read_json(entries.require(folder, f"{stage}.json"))

    def images(self, record: Record, count: int) -> NDArray[np.uint8] | None:
        """The record's first ``count`` samples, uint8 [count, c, h, w]; None where the store has none."""
        folder = self.folder(record, "samples")
        shards: list[NDArray[np.uint8]] = []
        if folder is None:
            return None
        for name in sorted(fnmatch.filter(entries.manifest(folder)["files"], "shard-*")):
            shards.append(_arrays(entries.require(folder, name))["images"])
            if sum(map(len, shards)) >= count:
                break
        return np.concatenate(shards)[:count] if shards else None

    def rows_of_images(self, named: Iterable[tuple[str, Record]], count: int) -> list[tuple[str, NDArray[np.uint8]]]:
        """The first images of each record, with its name and bits; of those whose images have the first one's shape."""
        found = [
            (_labelled(name, record), images) for name, record in named if (images := self.images(record, count)) is not None
        ]
        return [(name, images) for name, images in found if images.shape == found[0][1].shape]

    def estimates(self, record: Record) -> dict[str, Estimate]:
        """The estimates of those of the record's numbers that are means or statistics of its images, by key, with their
        replicates."""
        found: dict[str, Estimate] = {}
        if "measures" not in record:
            self.gaps.add("some cells were measured before intervals were kept with them: run their sweeps again for these")
        for name in record.get("measures", {}):
            folder = self.folder(record, name)
            if folder is None:
                self.gaps.add("what some cells were measured by is not in the store: their numbers have no intervals")
                continue
            kept = files.read_json(entries.require(folder, "numbers.json"))
            for key, one in kept.items():
                value = record["metrics"].get(key)
                if value is not None and "replicates" in one:
                    found[key] = Estimate(value, np.array(one["replicates"]))
        return found


def _labelled(name: str, record: Record) -> str:
    """The name with the bits, which a picture does not have in a column."""
    return name if full_precision(record) or bits(record) in name else f"{name} {bits(record)}"


def _arrays(path: Path) -> dict[str, NDArray[Any]]:
    """The arrays in a file of the store. Raises UserError where it is corrupt."""
    try:
        return load_file(path)
    except (OSError, SafetensorError) as error:
        raise UserError(f"{path} is corrupt ({error}): run the sweep again, which makes it anew") from error
