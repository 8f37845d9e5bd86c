"""The scores of a cell's images: against the reference, and against the full-precision images of the same noise."""

import json
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch

from qdexp import files
from qdexp.config import RANDOM, Config
from qdexp.metrics.distance import image_distance
from qdexp.metrics.extractors import Extractor, find
from qdexp.metrics.features import extract_from
from qdexp.metrics.reference import Reference
from qdexp.metrics.scores import estimates, score
from qdexp.sampling.shards import Images
from qdexp.stages.base import Stage
from qdexp.stages.samples import SamplesStage, image_pairs

FILE = "metrics.json"
REPLICATES = "replicates.json"
BATCH = 256  # rows of a feature extraction: fixed, since it may change a feature's last bit


@dataclass(frozen=True, eq=False, kw_only=True)
class EvaluationStage(Stage):
    """``metrics.json``; ``replicates.json`` with the jackknife replicates of those that get an interval; and
    ``features.safetensors`` with ``pool`` [n, d], ``logits`` [n, k] and ``distance`` [n]."""

    name = "evaluation"
    quick = True

    samples: SamplesStage
    full_precision: SamplesStage
    extractor: Extractor
    reference: Path | str
    seed: int
    scorer: str

    @classmethod
    def of(cls, config: Config, samples: SamplesStage, full_precision: SamplesStage) -> "EvaluationStage":
        protocol = config.protocol
        return cls(
            device=samples.device,
            samples=samples,
            full_precision=full_precision,
            extractor=find(protocol.extractor, protocol.extractor_weights),
            reference=RANDOM if protocol.reference == RANDOM else Path(protocol.reference),
            seed=protocol.noise_seed,
            scorer=version("torch-fidelity"),
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        features = extract_from(self.extractor, Images(inputs["samples"]), BATCH, self.device)
        reference = Reference.load(Path(self.reference))
        distance = torch.cat([image_distance(images, truth) for images, truth in image_pairs(inputs)])
        found = estimates(features.pool, distance, reference)
        metrics = {"distance": 0.0} | {name: estimate.value for name, estimate in found.items()}
        metrics |= score(features, reference, self.seed)  # FID is torch-fidelity's, to the last digit
        kept = {"pool": features.pool, "logits": features.logits, "distance": distance}
        files.write_tensors(folder / "features.safetensors", kept)
        files.write_text(folder / REPLICATES, json.dumps({name: one.replicates.tolist() for name, one in found.items()}))
        files.write_text(folder / FILE, json.dumps(metrics))
