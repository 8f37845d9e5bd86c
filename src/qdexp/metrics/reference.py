"""Reference statistics: what the samples are compared with.

A reference is a safetensors file with mean ``mu`` [d] and covariance ``sigma`` [d, d] (float64) of the real images' features,
and likewise ``mu_s`` and ``sigma_s`` of their spatial features. FID and sFID need no more. ``features`` [m, d] (float32), a
random subset of the same features, serves KID, precision and recall; ``floor_features`` [f, d] (float32), those of held-out
real images in their order, tell how a perfect model would score. The metadata name data set, extractor and its digest, say
which ``images`` were read and which left out, and hold a digest of all the content, so that a changed file is found out.
Statistics that can give no finite FID are refused, when they are to be written and when they are read.

The ADM evaluation suite publishes ``.npz`` files of means and covariances alone (Dhariwal and Nichol 2021, arXiv 2105.05233).
They name no extractor: they are taken for statistics of InceptionV3, whose 2,048 features they must have.

The reference ``random`` is no file: a standard normal distribution of such features, for rehearsals with random weights.
"""

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import load_file
from torch import Tensor
from torch_fidelity.metric_fid import fid_features_to_statistics

from qdexp.config import RANDOM
from qdexp.errors import UserError
from qdexp.files import read_arrays, sha256, write_tensors
from qdexp.metrics.extractor import Extractor
from qdexp.metrics.extractors import INCEPTION, RANDOM_INCEPTION

STATISTICS, FEATURES = ("mu", "sigma", "mu_s", "sigma_s"), ("features", "floor_features")
ABOUT = {"extractor", "extractor_digest", "dataset"}
INCEPTION_FEATURES, INCEPTION_SPATIAL = 2048, 2023


@dataclass(frozen=True)
class Reference:
    """A reference set's statistics. ``digest`` is the SHA-256 of its file, ``extractor_digest`` that of the weights."""

    mu: Tensor
    sigma: Tensor
    extractor: str
    extractor_digest: str
    dataset: str
    digest: str
    features: Tensor | None = None
    floor_features: Tensor | None = None
    mu_s: Tensor | None = None
    sigma_s: Tensor | None = None
    images: str = ""

    @classmethod
    def load(cls, path: Path, option: str = "protocol.reference") -> "Reference":
        """Reads a reference file, which the user named by ``option``. ``random`` is none.

        Raises UserError if it is missing, truncated, changed, no reference, or one that can give no finite FID.
        """
        if str(path) == RANDOM:
            return cls.standard_normal(RANDOM_INCEPTION, INCEPTION_FEATURES, INCEPTION_SPATIAL)
        if not path.is_file():
            raise UserError(f"{option}={path} does not exist; name a reference file")
        if path.suffix == ".npz":
            return cls._published(path, option)
        try:
            with safe_open(path, "pt") as file:
                about = file.metadata() or {}
            tensors = load_file(path)
            intact = about.pop("content_digest") == _digest(tensors, about)
            if about.keys() - {"images"} != ABOUT:
                raise KeyError("not what a reference holds")
        except (SafetensorError, KeyError, TypeError) as error:
            raise UserError(f"{option}={path} is truncated or no reference file; make or fetch it again") from error
        if not intact:
            raise UserError(f"{option}={path} was changed after it was made; make or fetch it again")
        _require_sound(tensors, f"{option}={path}")
        known: dict[str, Any] = {name: tensors[name] for name in (*STATISTICS, *FEATURES) if name in tensors}
        return cls(**known, **about, digest=sha256(path))

    @classmethod
    def standard_normal(cls, extractor: Extractor, features: int, spatial: int | None = None) -> "Reference":
        """Make a standard normal reference with as many features as ``extractor`` has: for rehearsals."""
        moments = [(None, None) if d is None else (torch.zeros(d).double(), torch.eye(d).double()) for d in (features, spatial)]
        (mu, sigma), (mu_s, sigma_s) = moments
        assert mu is not None and sigma is not None
        return cls(mu, sigma, extractor.name, extractor.digest, "standard normal", RANDOM, mu_s=mu_s, sigma_s=sigma_s)

    @classmethod
    def _published(cls, path: Path, option: str) -> "Reference":
        try:
            arrays = read_arrays(path, STATISTICS)
            if any(value.dtype.kind not in "fiu" for value in arrays.values()):
                raise TypeError("no real numbers")
            found = {name: torch.from_numpy(value).double() for name, value in arrays.items()}
            moments = found["mu"].shape, found["sigma"].shape
        except (ValueError, KeyError, TypeError) as error:
            raise UserError(f"{option}={path} holds no arrays mu and sigma; name a statistics file") from error
        if moments != ((INCEPTION_FEATURES,), (INCEPTION_FEATURES, INCEPTION_FEATURES)):
            raise UserError(f"{option}={path} holds statistics of {list(moments[0])} features, not of InceptionV3's "
                            f"{INCEPTION_FEATURES}; name another file")  # fmt: skip
        _require_sound(found, f"{option}={path}")
        made: dict[str, Any] = {"extractor": INCEPTION.name, "extractor_digest": INCEPTION.digest, "dataset": path.stem}
        return cls(**made | found, digest=sha256(path))

    def check(self, extractor: Extractor, option: str = "protocol.reference") -> None:
        """UserError unless this reference, which the user named by ``option``, was measured with exactly this extractor."""
        if (self.extractor, self.extractor_digest) != (extractor.name, extractor.digest):
            named = extractor.option.partition("=")[0]
            raise UserError(
                f"{option} was measured with extractor {self.extractor} ({self.extractor_digest[:12]}), "
                f"{named} is {extractor.name} ({extractor.digest[:12]}); choose a reference made with it"
            )


def statistics(pool: Tensor) -> dict[str, Tensor]:
    """``mu`` [d] and ``sigma`` [d, d], float64, of features ``pool`` [n, d]."""
    return {name: torch.from_numpy(value) for name, value in fid_features_to_statistics(pool.double()).items()}


def write(path: Path, tensors: dict[str, Tensor], extractor: Extractor, dataset: str, images: str = "") -> None:
    """Writes a reference file of ``mu`` and ``sigma`` and, where known, ``features`` and ``floor_features``.

    Args:
        images: which were read, and which left out.

    Raises:
        UserError: The statistics can give no finite FID.
    """
    _require_sound(tensors, str(path))
    about = {"extractor": extractor.name, "extractor_digest": extractor.digest, "dataset": dataset}
    about |= {"images": images} if images else {}
    about["content_digest"] = _digest(tensors, about)
    write_tensors(path, tensors, about)


def _require_sound(tensors: Mapping[str, Tensor], place: str) -> None:
    """UserError unless means are [d], covariances symmetric [d, d], features [m, d], and all of them finite."""
    fault = next(_faults(tensors), None)
    if fault is not None:
        raise UserError(f"{place} can give no FID ({fault}); build it again, of at least 2 images")


def _faults(tensors: Mapping[str, Tensor]) -> Iterator[str]:
    yield from (f"{name} has numbers that are not finite" for name, value in tensors.items() if not value.isfinite().all())
    for mean, covariance in (("mu", "sigma"), ("mu_s", "sigma_s")):
        mu, sigma = tensors.get(mean), tensors.get(covariance)
        if mu is None or sigma is None:
            if mu is not sigma or mean == "mu":
                yield f"{mean} and {covariance} are not both there"
        elif mu.ndim != 1 or sigma.shape != (len(mu), len(mu)):
            yield f"{mean} is {list(mu.shape)} and {covariance} {list(sigma.shape)}, not [d] and [d, d]"
        elif not torch.allclose(sigma, sigma.T, atol=1e-6 * float(sigma.abs().max())) or sigma.diagonal().min() < 0:
            yield f"{covariance} is no covariance: not symmetric, or with a negative variance"
    for name in FEATURES:
        if name in tensors and tensors[name].shape[1:] != tensors["mu"].shape:
            yield f"{name} is {list(tensors[name].shape)}, not [m, {len(tensors['mu'])}]"


def _digest(tensors: dict[str, Tensor], about: dict[str, str]) -> str:
    """SHA-256 over the metadata and every tensor's name, type, shape and bytes."""
    sha = hashlib.sha256(json.dumps(about, sort_keys=True).encode())
    for name, value in sorted(tensors.items()):
        sha.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        sha.update(value.contiguous().numpy().tobytes())
    return sha.hexdigest()
