"""Distances of images to the full-precision ones of the same noise, image by image: mean squared distance, and PSNR.

With pixels in [0, 1]: distance_i = mean (a_i - b_i)^2, PSNR_i = -10 log10 distance_i.
"""

from collections.abc import Collection
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from qdexp.config import Config
from qdexp.metrics.base import FULL_PRECISION, SAMPLES, Material, Metric, Result
from qdexp.numbers import Number
from qdexp.statistics.estimate import of_mean
from qdexp.statistics.psnr import psnr


@dataclass(frozen=True, kw_only=True)
class Distance(Metric):
    """MSE, and PSNR where not all images equal those of full precision, whose own distance is known to be 0."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "psnr",
            "PSNR to FP",
            kind="fidelity",
            shown=("overview", "alone"),
            higher=True,
            meaning="Peak signal-to-noise ratio to the full-precision image of the same noise, in dB.",
        ),
        Number(
            "distance",
            "MSE to FP x1000",
            kind="fidelity",
            shown=("brief", "alone"),
            factor=1000.0,
            digits=3,
            significant=True,
            meaning="Mean squared distance to the full-precision image of the same noise, pixels in [0, 1].",
        ),
    )
    needs: ClassVar[frozenset[str]] = frozenset({SAMPLES, FULL_PRECISION})

    def needs_of(self, config: Config) -> Collection[str]:
        return () if config.full_precision else self.needs

    def measure(self, material: Material) -> dict[str, Result]:
        if FULL_PRECISION not in material.folders:
            return {"distance": 0.0}
        distance = torch.cat([image_distance(*pair, material.device) for pair in material.pairs()])
        return {"distance": distance, **({"psnr": of_mean(psnr(distance.numpy()))} if distance.any() else {})}


def image_distance(a: Tensor, b: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """Mean squared distance [n] (float32) of uint8 images ``a`` and ``b`` [n, c, h, w], pixels taken in [0, 1]; ``device``:
    where it is computed."""
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape:
        raise ValueError(f"expected uint8 images of one shape, got {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}")
    # piece by piece: as floats, a large set of large images does not fit in memory
    pieces = zip(a.split(256), b.split(256), strict=True)
    differences = ((x.to(device).float() - y.to(device).float()) / 255 for x, y in pieces)
    return torch.cat([one.square().flatten(1).mean(1).cpu() for one in differences])
