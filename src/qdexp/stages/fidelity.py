"""How near each quantized image is to the full-precision one of the same noise."""

from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors.torch import load_file

from qdexp import files
from qdexp.metrics.distance import image_distance
from qdexp.metrics.similarity import structural_similarity
from qdexp.stages.base import Results, Stage
from qdexp.stages.samples import SamplesStage, image_pairs
from qdexp.statistics.psnr import psnr

FILE = "fidelity.safetensors"


@dataclass(frozen=True, eq=False, kw_only=True)
class FidelityStage(Stage):
    """``fidelity.safetensors``: ``distance`` and ``ssim``, float32 [n] each, in the order of the samples."""

    name = "fidelity"
    quick = True

    samples: SamplesStage
    full_precision: SamplesStage

    @classmethod
    def of(cls, samples: SamplesStage, full_precision: SamplesStage) -> "FidelityStage":
        return cls(device=samples.device, samples=samples, full_precision=full_precision)

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        found = [(image_distance(*pair), structural_similarity(*pair)) for pair in image_pairs(inputs)]
        distance, ssim = (torch.cat(parts) for parts in zip(*found, strict=True))
        files.write_tensors(folder / FILE, {"distance": distance, "ssim": ssim})

    def results(self, folder: Path) -> Results:
        """Means over the images: ``distance``, ``ssim``, and ``psnr`` where not all images equal the full-precision ones."""
        found = load_file(folder / FILE)
        distance, ssim = found["distance"].double(), found["ssim"].double()
        finite = {"psnr": float(psnr(distance.numpy()).mean())} if distance.any() else {}
        return {"metrics": {"distance": distance.mean().item(), **finite, "ssim": ssim.mean().item()}}
