"""How alike each quantized image is to the full-precision one of the same noise."""

from pathlib import Path
from typing import Any

import torch

from qdexp import files
from qdexp.config import Config
from qdexp.metrics.similarity import structural_similarity
from qdexp.stages.base import Stage
from qdexp.stages.samples import image_inputs, image_pairs

FILE = "similarity.safetensors"


class SimilarityStage(Stage):
    """``similarity.safetensors``: ``ssim`` float32 [n], in the order of the samples."""

    name = "similarity"
    version = 1
    sources = ("qdexp.stages.similarity", "qdexp.metrics.similarity", "qdexp.sampling")
    quick = True

    def __init__(self, config: Config) -> None:
        super().__init__(config)
        self.images = image_inputs(config)

    @property
    def inputs(self) -> dict[str, Stage]:
        return self.images

    @property
    def options(self) -> dict[str, Any]:
        return {}

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        ssim = [structural_similarity(images, truth) for images, truth in image_pairs(inputs)]
        files.write_tensors(folder / FILE, {"ssim": torch.cat(ssim)})
