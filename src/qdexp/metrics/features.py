"""Features of images: one pass of a feature extractor, from which every distributional metric is computed afterwards."""

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset, TensorDataset

from qdexp.errors import UserError
from qdexp.metrics.extractors import Extractor


@dataclass(frozen=True)
class Features:
    """What an extractor says of n images, in their order: ``pool`` [n, d], ``logits`` [n, k] and, if it has them, ``spatial``
    [n, s]; float32 on the CPU."""

    pool: Tensor
    logits: Tensor
    spatial: Tensor | None = None


class FeatureExtraction(nn.Module):
    """From a batch ``[images]``, uint8 [n, c, h, w], to its features."""

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, batch: list[Tensor]) -> tuple[Tensor, ...]:
        """The features of one batch, on the device."""
        outputs: tuple[Tensor, ...] = self.network(batch[0])
        return outputs


def extract(extractor: Extractor, images: Tensor, batch_size: int, device: torch.device) -> Features:
    """Features of uint8 ``images`` [n, c, h, w], on one device.

    Raises UserError if the extractor lacks its weights, or does not take images of this shape.
    """
    return extract_from(extractor, TensorDataset(images), batch_size, device)


def extract_from(extractor: Extractor, images: Dataset[tuple[Tensor, ...]], batch_size: int, device: torch.device) -> Features:
    """Likewise of a data set whose entries are ``(image,)``, which need not fit in memory."""
    from qdexp import lightning  # late: it takes seconds

    shape = images[0][0].shape
    if tuple(shape[: len(extractor.shape)]) != extractor.shape:
        raise UserError(
            f"protocol.extractor={extractor.name} takes images of shape {list(extractor.shape)}, "
            f"these have {list(shape)}; choose another extractor"
        )
    batches = lightning.predict(FeatureExtraction(extractor.build()), DataLoader(images, batch_size), device)
    return Features(*(torch.cat(part).float().cpu() for part in zip(*batches, strict=True)))
