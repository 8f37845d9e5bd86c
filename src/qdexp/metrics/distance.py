"""How far images are from the full-precision ones of the same noise, image by image.

With pixels in [0, 1]: distance_i = mean (a_i - b_i)^2.
"""

import torch
from torch import Tensor


def image_distance(a: Tensor, b: Tensor) -> Tensor:
    """Mean squared distance [n] (float32) of uint8 images ``a`` and ``b`` [n, c, h, w], pixels taken in [0, 1]."""
    if a.dtype != torch.uint8 or b.dtype != torch.uint8 or a.shape != b.shape:
        raise ValueError(f"expected uint8 images of one shape, got {a.dtype} {list(a.shape)} and {b.dtype} {list(b.shape)}")
    # piece by piece: as floats, a large set of large images does not fit in memory
    pieces = zip(a.split(256), b.split(256), strict=True)
    return torch.cat([((x.float() - y.float()) / 255).square().flatten(1).mean(1) for x, y in pieces])
