"""LPIPS of each quantized image to the full-precision one of the same noise, where weights for it are named."""

import json
from collections.abc import Sequence
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch

from qdexp import files
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.metrics.perceptual import BACKBONES, PIECE, Backbone, Perceptual, backbone_of, weight_shapes
from qdexp.models.weights import WeightFiles
from qdexp.stages.base import Stage
from qdexp.stages.samples import image_inputs, image_pairs

FILE = "perceptual.safetensors"
MADE_WITH = "perceptual.json"


class PerceptualStage(Stage):
    """``perceptual.safetensors``: ``lpips`` float32 [n], in the order of the samples; ``perceptual.json``: its origin.

    The latter holds ``backbone``, ``weights_digest`` (SHA-256 of the file) and ``library`` (the version of lpips).
    """

    name = "perceptual"
    version = 1
    sources = ("qdexp.stages.perceptual", "qdexp.metrics.perceptual", "qdexp.models.weights", "qdexp.sampling")
    quick = True

    def __init__(self, config: Config, weights: Path) -> None:
        super().__init__(config)
        self.weights = weights
        self.images = image_inputs(config)

    @property
    def inputs(self) -> dict[str, Stage]:
        return self.images

    @property
    def options(self) -> dict[str, Any]:
        return {"library": version("lpips"), "batch": PIECE}

    @property
    def files(self) -> dict[str, Path]:
        return {"weights": self.weights}

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        opened, backbone = _opened(self.weights)
        read = opened.read(weight_shapes(backbone))
        weights = {name: value.clone() for some in read for name, value in some.items()}
        network = Perceptual(backbone, weights, self.device)
        lpips = [network.distance(images, truth) for images, truth in image_pairs(inputs)]
        made_with = {"backbone": backbone.title, "weights_digest": files.sha256(self.weights), "library": version("lpips")}
        files.write_tensors(folder / FILE, {"lpips": torch.cat(lpips)})
        files.write_text(folder / MADE_WITH, json.dumps(made_with))


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
