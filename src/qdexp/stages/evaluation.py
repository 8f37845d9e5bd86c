"""The scores of a cell's images: against the reference, and against the full-precision images of the same noise."""

import json
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from qdexp import files
from qdexp.config import RANDOM, Config
from qdexp.metrics.distance import image_distance, psnr
from qdexp.metrics.extractors import find
from qdexp.metrics.features import extract_from
from qdexp.metrics.reference import Reference
from qdexp.metrics.scores import score
from qdexp.sampling.shards import Images
from qdexp.stages.base import Stage
from qdexp.stages.samples import image_inputs, image_pairs

FILE = "metrics.json"
BATCH = 256  # rows of a feature extraction: fixed, since it may change a feature's last bit


class EvaluationStage(Stage):
    """``metrics.json``, and ``features.safetensors`` with ``pool`` [n, d], ``logits`` [n, k] and ``distance`` [n]."""

    name = "evaluation"
    version = 2
    sources = ("qdexp.stages.evaluation", "qdexp.metrics", "qdexp.sampling", "qdexp.zoo.extractor")
    quick = True

    def __init__(self, config: Config, quantized: bool) -> None:
        super().__init__(config)
        self.images = image_inputs(config, quantized)

    @property
    def inputs(self) -> dict[str, Stage]:
        return self.images

    @property
    def options(self) -> dict[str, Any]:
        protocol = self.config.protocol
        scorer = version("torch-fidelity")
        return {"extractor": find(protocol.extractor).digest, "batch": BATCH, "seed": protocol.noise_seed, "scorer": scorer}

    @property
    def files(self) -> dict[str, Path]:
        reference = self.config.protocol.reference
        return {} if reference == RANDOM else {"reference": Path(reference)}

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        protocol = self.config.protocol
        extractor = find(protocol.extractor, protocol.extractor_weights)
        features = extract_from(extractor, Images(inputs["samples"]), BATCH, self.device)
        metrics = score(features, Reference.load(Path(protocol.reference)), protocol.noise_seed)
        distance = torch.cat([image_distance(images, truth) for images, truth in image_pairs(inputs)])
        metrics["distance"] = distance.double().mean().item()
        if metrics["distance"] > 0:  # images equal to the full-precision ones have no finite PSNR
            metrics["psnr"] = psnr(distance.clamp_min(1e-10)).double().mean().item()
        kept = {"pool": features.pool, "logits": features.logits, "distance": distance}
        files.write_tensors(folder / "features.safetensors", kept)
        files.write_text(folder / FILE, json.dumps(metrics))
