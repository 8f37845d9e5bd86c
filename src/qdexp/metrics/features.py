"""Features of images: one pass of a feature extractor, from which every distributional metric is computed afterwards."""

from dataclasses import dataclass
from typing import cast

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from qdexp.errors import UserError
from qdexp.metrics.extractor import Extractor


@dataclass(frozen=True)
class Features:
    """The features of n images, in their order: ``pool`` [n, d] and, where the extractor has these, ``logits`` [n, k] and
    ``spatial`` [n, s]; float32 on the CPU."""

    pool: Tensor
    logits: Tensor | None = None
    spatial: Tensor | None = None


def extract(extractor: Extractor, images: Tensor | Dataset[Tensor], batch_size: int, device: torch.device) -> Features:
    """Features of uint8 ``images`` [n, c, h, w], or of a data set of such, which need not fit in memory.

    Raises UserError if the extractor lacks its weights, or does not take images of this shape.
    """
    from qdexp import lightning  # late: it takes seconds

    shape = images[0].shape
    if not extractor.takes(shape):
        raise UserError(
            f"{extractor.option} takes images of shape {list(extractor.shape)}, "
            f"these have {list(shape)}; choose another extractor"
        )
    batches = lightning.predict(extractor.build(), DataLoader(cast("Dataset[Tensor]", images), batch_size), device)
    parts = (torch.cat(part).float().cpu() for part in zip(*batches, strict=True))
    return Features(**dict(zip(extractor.outputs, parts, strict=True)))
