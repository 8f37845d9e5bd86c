"""Structural similarity of images to the full-precision ones of the same noise, image by image.

With means, variances and covariance under a Gaussian window (11 pixels, sigma 1.5), pixels in [0, 1]:

    SSIM = mean of (2 m_a m_b + c1) (2 s_ab + c2) / ((m_a^2 + m_b^2 + c1) (s_a^2 + s_b^2 + c2)),  c1 = 0.01^2, c2 = 0.03^2

(Wang et al., IEEE Trans. Image Process. 13 (2004), eq. 13), over the pixels whose window lies inside, then over the channels.
"""

from dataclasses import dataclass
from typing import ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from qdexp.metrics.base import FULL_PRECISION, SAMPLES, Material, Metric
from qdexp.numbers import Number

WINDOW, SIGMA = 11, 1.5
C1, C2 = 0.01**2, 0.03**2
PIECE = 256
"""Images at a time: as floats, a large set of large images does not fit in memory."""


@dataclass(frozen=True, kw_only=True)
class Similarity(Metric):
    """SSIM."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "ssim",
            "SSIM to FP",
            kind="fidelity",
            shown=("overview", "alone"),
            digits=3,
            higher=True,
            meaning="Structural similarity to the full-precision image of the same noise: 1 where both are equal.",
        ),
    )
    needs: ClassVar[frozenset[str]] = frozenset({SAMPLES, FULL_PRECISION})

    def measure(self, material: Material) -> dict[str, Tensor]:
        return {"ssim": torch.cat([structural_similarity(*pair, material.device) for pair in material.pairs()])}


def structural_similarity(a: Tensor, b: Tensor, device: torch.device | str = "cpu") -> Tensor:
    """SSIM [n] (float32) of uint8 images ``a`` and ``b`` [n, c, h, w], h and w at least 11, on ``device``."""
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape or min(a.shape[2:]) < WINDOW:
        raise ValueError(f"expected uint8 images of one shape, 11 pixels or more, got {list(a.shape)} and {list(b.shape)}")
    pieces = zip(a.split(PIECE), b.split(PIECE), strict=True)
    return torch.cat([_similarity(*(x.to(device).float() / 255 for x in piece)).cpu() for piece in pieces])


def _similarity(a: Tensor, b: Tensor) -> Tensor:
    mean_a, mean_b, square_a, square_b, product = (_blurred(x) for x in (a, b, a * a, b * b, a * b))
    covariance, variances = product - mean_a * mean_b, square_a - mean_a**2 + square_b - mean_b**2
    luminance = (2 * mean_a * mean_b + C1) / (mean_a**2 + mean_b**2 + C1)
    return (luminance * (2 * covariance + C2) / (variances + C2)).mean(dim=(1, 2, 3))


def _blurred(x: Tensor) -> Tensor:
    """Means under the window, [n, c, h - 10, w - 10]."""
    offsets = torch.arange(WINDOW, device=x.device) - WINDOW // 2
    window = torch.exp(-(offsets**2) / (2 * SIGMA**2))
    window = (window / window.sum()).reshape(1, 1, 1, -1)
    rows = F.conv2d(x.flatten(0, 1).unsqueeze(1), window)
    return F.conv2d(rows, window.transpose(2, 3)).squeeze(1).unflatten(0, x.shape[:2])
