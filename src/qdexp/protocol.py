"""The protocol of a cell: everything that has to be equal where numbers are compared, as one value with a hash."""

from importlib.metadata import version
from pathlib import Path
from typing import Any

from qdexp.config import NO_EXTRACTOR, RANDOM, Config
from qdexp.entries import digest
from qdexp.errors import UserError
from qdexp.metrics.base import image_shape
from qdexp.metrics.clip import ClipScore
from qdexp.metrics.extractors import find
from qdexp.metrics.fid import floor
from qdexp.metrics.reference import Reference
from qdexp.stages import conditions
from qdexp.stages.keys import identity, short_hash


def protocol_of(config: Config) -> dict[str, Any]:
    """The protocol as a record holds it: with its hash, and what has to be said beside the scores."""
    measured = measured_under(config)
    return {"hash": short_hash(measured), "name": config.protocol.name, **measured, **_remarks(config)}


def measured_under(config: Config) -> dict[str, Any]:
    """The content of the protocol's hash: only numbers of equal hash may be compared."""
    protocol = config.protocol
    return {
        "n": protocol.n,
        **conditions.protocol_of(config),
        "steps": protocol.steps,
        "scheduler": identity(protocol.scheduler),
        "pixels": protocol.pixels,
        "noise_seed": protocol.noise_seed,
        "heldout": protocol.heldout,
        **_scored_with(config),
        **_asked_with(config),
    }


def check(config: Config) -> None:
    """Raises UserError where the model cannot have the conditions of the protocol, or its images cannot be compared with the
    reference."""
    conditions.check(config)
    protocol, instead = config.protocol, f"or measure fidelity to full precision alone: protocol.extractor={NO_EXTRACTOR}"
    if not protocol.scores:
        return
    if not protocol.reference:
        raise UserError(f"protocol.reference=: name a file of statistics (python -m qdexp.metrics.build makes one), {instead}")
    extractor = find(protocol.extractor, protocol.extractor_weights)
    extractor.check()
    Reference.load(Path(protocol.reference)).check(extractor)
    shape = image_shape(config.model)
    if not extractor.takes(shape):
        raise UserError(f"protocol.extractor={extractor.name}: it takes images of shape {list(extractor.shape)}, "
                        f"{config.model.name} makes {list(shape)}; choose another extractor, {instead}")  # fmt: skip


def _scored_with(config: Config) -> dict[str, Any]:
    """The extractor and the reference."""
    protocol = config.protocol
    if not protocol.scores:
        return {"extractor": NO_EXTRACTOR}
    extractor, reference = find(protocol.extractor, protocol.extractor_weights), protocol.reference
    return {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "reference_digest": RANDOM if reference == RANDOM else digest(Path(reference)),
        "torch_fidelity": version("torch-fidelity"),
    }


def _asked_with(config: Config) -> dict[str, Any]:
    """The CLIP model; nothing where images are not scored with one."""
    if config.protocol.clip is None:
        return {}
    digests = {role: digest(path) for role, path in ClipScore().files(config).items()}
    return {"clip_digest": short_hash(digests), "transformers": version("transformers")}


def _remarks(config: Config) -> dict[str, Any]:
    """Remarks on the scores: how low FID can be (``floor``), or that scores mean nothing (``random_extractor``)."""
    protocol = config.protocol
    if not protocol.scores:
        return {}
    lowest = floor(Reference.load(Path(protocol.reference)), protocol.n)
    said: dict[str, Any] = {} if lowest is None else {"floor": {"fid": lowest, "n": protocol.n}}
    return said | ({"random_extractor": True} if find(protocol.extractor, protocol.extractor_weights).random else {})
