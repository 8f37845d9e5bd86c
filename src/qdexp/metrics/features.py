"""Features of images: one pass of a feature extractor, from which every distributional metric is computed afterwards."""

from dataclasses import dataclass

import pytorch_lightning as pl
import torch
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset
from torch_fidelity.feature_extractor_base import FeatureExtractorBase

from qdexp import device as devices
from qdexp.errors import UserError
from qdexp.metrics.extractors import Extractor, find


@dataclass(frozen=True)
class Features:
    """What an extractor says of n images: ``pool`` [n, d] and ``logits`` [n, k], float32 on the CPU, in the images' order."""

    pool: Tensor
    logits: Tensor


class FeatureExtraction(pl.LightningModule):
    """Predicts ``(pool, logits)`` of each batch of uint8 images [n, c, h, w]."""

    def __init__(self, network: FeatureExtractorBase) -> None:
        super().__init__()
        self.network = network

    def predict_step(self, batch: list[Tensor], _: int) -> tuple[Tensor, ...]:
        """``(pool, logits)`` of one batch, on the device."""
        outputs: tuple[Tensor, ...] = self.network(batch[0])
        return outputs


def extract(images: Tensor, extractor_name: str, batch_size: int, device: torch.device) -> Features:
    """Features of uint8 ``images`` [n, c, h, w] under the extractor called ``extractor_name``, on one device.

    Raises UserError if the extractor is unknown, lacks its weights, or does not take images of this shape.
    """
    return extract_with(find(extractor_name), images, batch_size, device)


def extract_with(extractor: Extractor, images: Tensor, batch_size: int, device: torch.device) -> Features:
    """``extract`` with an extractor that need not be in the table, such as one just trained."""
    if tuple(images.shape[1 : 1 + len(extractor.shape)]) != extractor.shape:
        raise UserError(
            f"protocol.extractor={extractor.name} takes images of shape {list(extractor.shape)}, "
            f"the model makes {list(images.shape[1:])}; choose another extractor"
        )
    batches = devices.predict(FeatureExtraction(extractor.build()), DataLoader(TensorDataset(images), batch_size), device)
    pool, logits = zip(*batches, strict=True)
    return Features(torch.cat(pool).float().cpu(), torch.cat(logits).float().cpu())
