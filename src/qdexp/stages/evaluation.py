"""The scores of a cell's images against the reference."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

from qdexp import files
from qdexp.config import NO_EXTRACTOR, RANDOM, Config
from qdexp.errors import UserError
from qdexp.metrics.extractors import Extractor, find
from qdexp.metrics.features import extract
from qdexp.metrics.reference import Reference
from qdexp.metrics.scores import estimates, floor, score
from qdexp.sampling.shards import Images
from qdexp.stages.base import Results, Stage
from qdexp.stages.samples import SamplesStage

FILE = "metrics.json"
REPLICATES = "replicates.json"
BATCH = 256  # rows of a feature extraction: fixed, since it may change a feature's last bit


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationStage(Stage):
    """``metrics.json``; ``replicates.json`` with the jackknife replicates of those that get an interval; and
    ``features.safetensors`` with ``pool`` [n, d] and ``logits`` [n, k]."""

    name = "evaluation"
    quick = True

    samples: SamplesStage
    extractor: Extractor
    reference: Path | str
    seed: int
    scorer: str

    @classmethod
    def of(cls, config: Config, samples: SamplesStage) -> "EvaluationStage":
        protocol = config.protocol
        return cls(
            device=samples.device,
            samples=samples,
            extractor=find(protocol.extractor, protocol.extractor_weights),
            reference=RANDOM if protocol.reference == RANDOM else Path(protocol.reference),
            seed=protocol.noise_seed,
            scorer=version("torch-fidelity"),
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        features = extract(self.extractor, Images(inputs["samples"]), BATCH, self.device)
        reference = Reference.load(Path(self.reference))
        found = estimates(features.pool, reference)
        metrics = {name: estimate.value for name, estimate in found.items()}
        metrics |= score(features, reference, self.seed)  # FID is torch-fidelity's, to the last digit
        files.write_tensors(folder / "features.safetensors", {"pool": features.pool, "logits": features.logits})
        files.write_text(folder / REPLICATES, json.dumps({name: one.replicates.tolist() for name, one in found.items()}))
        files.write_text(folder / FILE, json.dumps(metrics))

    def results(self, folder: Path) -> Results:
        return {"metrics": json.loads((folder / FILE).read_text())}


def check(config: Config, shape: Sequence[int]) -> None:
    """Raises UserError where images of ``shape`` [c, h, w], or [c] where their size is not known yet, cannot be compared with
    the reference."""
    protocol, instead = config.protocol, f"or measure fidelity to full precision alone: protocol.extractor={NO_EXTRACTOR}"
    if not protocol.scores:
        return
    if not protocol.reference:
        raise UserError(f"protocol.reference=: name a file of statistics (python -m qdexp.metrics.build makes one), {instead}")
    extractor = find(protocol.extractor, protocol.extractor_weights)
    extractor.checked_weights()
    Reference.load(Path(protocol.reference)).check(extractor)
    if any(made != taken for made, taken in zip(shape, extractor.shape, strict=False)):
        raise UserError(f"protocol.extractor={extractor.name}: it takes images of shape {list(extractor.shape)}, "
                        f"{config.model.name} makes {list(shape)}; choose another extractor, {instead}")  # fmt: skip


def protocol_of(config: Config) -> dict[str, Any]:
    """The extractor and the reference as parts of the protocol."""
    protocol = config.protocol
    if not protocol.scores:
        return {"extractor": NO_EXTRACTOR}
    extractor, reference = find(protocol.extractor), Reference.load(Path(protocol.reference))
    return {
        "extractor": extractor.name,
        "extractor_digest": extractor.digest,
        "reference_digest": reference.digest,
        "torch_fidelity": version("torch-fidelity"),
    }


def remarks(config: Config) -> dict[str, Any]:
    """What has to be said beside scores: how low FID can be (``floor``), or that they mean nothing (``random_extractor``)."""
    protocol = config.protocol
    if not protocol.scores:
        return {}
    lowest = floor(Reference.load(Path(protocol.reference)), protocol.n)
    said: dict[str, Any] = {} if lowest is None else {"floor": {"fid": lowest, "n": protocol.n}}
    return said | ({"random_extractor": True} if find(protocol.extractor).random else {})
