"""LPIPS of each quantized image to the full-precision one of the same noise, where weights for it are named."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import torch
from safetensors.torch import load_file

from qdexp import files
from qdexp.errors import UserError
from qdexp.metrics.perceptual import BACKBONES, Backbone, Perceptual, backbone_of, weight_shapes
from qdexp.models.weights import WeightFiles
from qdexp.stages.base import Results, Stage
from qdexp.stages.samples import SamplesStage, image_pairs

FILE = "perceptual.safetensors"
MADE_WITH = "perceptual.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class PerceptualStage(Stage):
    """``perceptual.safetensors``: ``lpips`` float32 [n], in the order of the samples; ``perceptual.json``: its origin.

    The latter holds ``backbone``, ``weights_digest`` (SHA-256 of the file) and ``library`` (the version of lpips).
    """

    name = "perceptual"
    quick = True

    samples: SamplesStage
    full_precision: SamplesStage
    weights: Path
    library: str

    @classmethod
    def of(cls, weights: Path, samples: SamplesStage, full_precision: SamplesStage) -> "PerceptualStage":
        return cls(
            device=samples.device,
            samples=samples,
            full_precision=full_precision,
            weights=weights,
            library=version("lpips"),
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        opened, backbone = _opened(self.weights)
        read = opened.read(weight_shapes(backbone))
        weights = {name: value.clone() for some in read for name, value in some.items()}
        network = Perceptual(backbone, weights, self.device)
        lpips = [network.distance(images, truth) for images, truth in image_pairs(inputs)]
        made_with = {"backbone": backbone.title, "weights_digest": files.sha256(self.weights), "library": self.library}
        files.write_tensors(folder / FILE, {"lpips": torch.cat(lpips)})
        files.write_text(folder / MADE_WITH, json.dumps(made_with))

    def results(self, folder: Path) -> Results:
        mean = load_file(folder / FILE)["lpips"].double().mean().item()
        return {"metrics": {"lpips": mean}, "lpips": json.loads((folder / MADE_WITH).read_text())}


def check(weights: Path, shape: Sequence[int]) -> None:
    """UserError unless the file can be used on images of ``shape`` [c, h, w], or [c] where their size is not known yet."""
    _, backbone = _opened(weights)
    backbone.check(shape)


def _opened(weights: Path) -> tuple[WeightFiles, Backbone]:
    option = f"inspection.lpips={weights}"
    if not weights.is_file():
        raise UserError(f"{option}: no such file; name torchvision's weights of AlexNet or VGG-16, or leave it null")
    opened = WeightFiles([weights], option)
    backbone = backbone_of(opened.shapes)
    if backbone is None:
        known = " or ".join(known.title for known in BACKBONES)
        raise UserError(f"{option}: not the weights of {known} under torchvision's names; name a file that holds them")
    return opened, backbone
