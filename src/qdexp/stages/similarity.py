"""How alike each quantized image is to the full-precision one of the same noise."""

from dataclasses import dataclass
from pathlib import Path

import torch

from qdexp import files
from qdexp.metrics.similarity import structural_similarity
from qdexp.stages.base import Stage
from qdexp.stages.samples import SamplesStage, image_pairs

FILE = "similarity.safetensors"


@dataclass(frozen=True, eq=False, kw_only=True)
class SimilarityStage(Stage):
    """``similarity.safetensors``: ``ssim`` float32 [n], in the order of the samples."""

    name = "similarity"
    quick = True

    samples: SamplesStage
    full_precision: SamplesStage

    @classmethod
    def of(cls, samples: SamplesStage, full_precision: SamplesStage) -> "SimilarityStage":
        return cls(device=samples.device, samples=samples, full_precision=full_precision)

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        ssim = [structural_similarity(images, truth) for images, truth in image_pairs(inputs)]
        files.write_tensors(folder / FILE, {"ssim": torch.cat(ssim)})
