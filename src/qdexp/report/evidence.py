"""What lies behind a record's numbers: the arrays of its stages in the store, and the estimates made from them.

A record may be read without its store, on another machine: then there are numbers and no intervals, and ``gaps`` says so.
"""

import contextlib
import fnmatch
import hashlib
import json
from collections.abc import Mapping
from functools import cache, cached_property
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file

from qdexp import entries, files
from qdexp.errors import UserError
from qdexp.report.records import Record
from qdexp.report.statistics.estimate import Estimate, of_mean
from qdexp.report.statistics.frechet import Frechet
from qdexp.report.statistics.kernel import Kernel

Arrays = dict[str, NDArray[Any]]

KID_LEAST = 1000
"""Images below which no KID is told, as in the record."""

PAIRED = {"similarity": "ssim", "perceptual": "lpips"}
"""By stage: what it measures of each image against the full-precision one of the same noise."""
ALONE = {"alignment": "clip"}
"""By stage: what it measures of each image by itself."""


class Reference:
    """The reference set that numbers were measured against, read when it is needed."""

    def __init__(self, tensors: Arrays, digest: str) -> None:
        self.tensors, self.digest = tensors, digest

    @cached_property
    def frechet(self) -> Frechet:
        return Frechet(self.tensors["mu"], self.tensors["sigma"])

    @cached_property
    def kernel(self) -> Kernel | None:
        """None where the file holds statistics only, or too few features."""
        features = self.tensors.get("features")
        return None if features is None or len(features) < KID_LEAST else Kernel(features)


class Evidence:
    """Reads the store beside the records in ``out``; ``gaps`` collects what was not there."""

    def __init__(self, out: Path) -> None:
        self.out = out
        self.gaps: set[str] = set()
        self._references: dict[str, Reference | None] = {}

    def folder(self, record: Record, stage: str) -> Path | None:
        """The store entry of the record's stage, if it is there."""
        key = record.get("keys", {}).get(stage)
        path = self.out / "store" / f"{stage}-{key}"
        return path if key and path.is_dir() else None

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

    def estimates(self, record: Record) -> dict[str, Estimate]:
        """By metric: those of the record's numbers that are means or statistics of its samples.

        Kept beside the reports, since 2,048-dimensional features take most of a minute a cell, under a hash of the features'
        keys and of the code that made them.
        """
        folder = self.folder(record, "evaluation")
        if folder is None:
            self.gaps.add("features of some cells are not in the store: their numbers have no intervals")
            return {}
        reference = self._reference(record)
        kept = self._kept(record, reference)
        with contextlib.suppress(OSError, ValueError, KeyError):  # none is kept, or it is not what was written
            plain = files.read_sealed(kept)["estimates"]
            return {name: Estimate(value, np.array(rest)) for name, (value, rest) in plain.items()}
        arrays = _arrays(entries.require(folder, "features.safetensors"))
        found = {**_distributional(reference, arrays["pool"]), **self._means(record, ALONE)}
        found |= self._paired(record, arrays["distance"])
        plain = {name: (estimate.value, estimate.replicates.tolist()) for name, estimate in found.items()}
        with contextlib.suppress(OSError):  # another's folder, or a full disk: the estimates are made anew each time
            kept.parent.mkdir(parents=True, exist_ok=True)
            files.write_sealed(kept, {"estimates": plain})
        return found

    def _kept(self, record: Record, reference: "Reference | None") -> Path:
        keys = [record["keys"].get(role) for role in ("evaluation", *ALONE, *PAIRED)]
        told = [
            *keys,
            *(self.folder(record, stage) is not None for stage in (*ALONE, *PAIRED)),
            reference and reference.digest,
            _code(),
        ]
        return self.out / "reports" / ".estimates" / f"{hashlib.sha256(json.dumps(told).encode()).hexdigest()[:24]}.json"

    def _paired(self, record: Record, distance: NDArray[Any]) -> dict[str, Estimate]:
        """Against the full-precision images of the same noise; nothing for full precision itself."""
        if not distance.any():
            return {}
        found = {"distance": of_mean(distance), "psnr": of_mean(-10 * np.log10(distance.clip(1e-10)))}
        return found | self._means(record, PAIRED)

    def _means(self, record: Record, measured: Mapping[str, str]) -> dict[str, Estimate]:
        """By metric, of the stages that are in the store."""
        there = {stage: self.folder(record, stage) for stage in measured}
        return {
            measured[stage]: of_mean(_arrays(entries.require(folder, f"{stage}.safetensors"))[measured[stage]])
            for stage, folder in there.items()
            if folder is not None
        }

    def _reference(self, record: Record) -> Reference | None:
        digest = record["protocol"]["reference_digest"]
        if digest not in self._references:
            self._references[digest] = self._read_reference(Path(record["config"]["protocol"]["reference"]), digest)
        return self._references[digest]

    def _read_reference(self, path: Path, digest: str) -> Reference | None:
        if not path.is_file() or hashlib.sha256(path.read_bytes()).hexdigest() != digest:
            self.gaps.add(f"{path} is not there, or not what it was: FID and KID have no intervals")
            return None
        return Reference(_arrays(path), digest)


def _arrays(path: Path) -> Arrays:
    """What a file of the store, or a reference, holds. Raises UserError where it is damaged."""
    try:
        return files.read_arrays(path, ("mu", "sigma")) if path.suffix == ".npz" else load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise UserError(f"{path} is damaged ({error}): run the sweep again, which makes it anew") from error


def _distributional(reference: Reference | None, pool: NDArray[Any]) -> dict[str, Estimate]:
    if reference is None:
        return {}
    estimates = {"fid": reference.frechet.fid(pool)}
    if len(pool) >= KID_LEAST and reference.kernel is not None:
        estimates["kid"] = reference.kernel.kid(pool)
    return estimates


@cache
def _code() -> str:
    """A digest of the source that makes estimates."""
    sources = [Path(__file__), *sorted((Path(__file__).parent / "statistics").glob("*.py"))]
    return hashlib.sha256(b"".join(path.read_bytes() for path in sources)).hexdigest()
