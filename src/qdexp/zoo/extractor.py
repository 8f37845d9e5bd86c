"""The embedded feature extractor's network: a small classifier of the ten Fashion-MNIST classes.

Six 3x3 convolutions on three scales. The features are the spatial means of the last rectified map, as those of
Inception-v3 are, and the logits are linear in them: mean and covariance of the features see what the classifier sees.
"""

import torch
from torch import Tensor, nn


def _conv(inputs: int, outputs: int) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(inputs, outputs, 3, padding=1, bias=False), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True))


class FashionCNN(nn.Module):
    """uint8 images [n, 1, 28, 28] -> features [n, 64] and logits [n, 10]."""

    FEATURES = 64
    CLASSES = 10

    def __init__(self) -> None:
        super().__init__()
        self.maps = nn.Sequential(
            *(_conv(1, 32), nn.MaxPool2d(2)),
            *(_conv(32, 64), _conv(64, 64), nn.MaxPool2d(2)),
            *(_conv(64, 128), _conv(128, 128), _conv(128, self.FEATURES)),
        )
        self.classify = nn.Linear(self.FEATURES, self.CLASSES)

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        """``(features, logits)``, float32."""
        x = (images.float() / 127.5 - 1.0).to(memory_format=torch.channels_last)
        features = self.maps(x).mean(dim=(2, 3))
        return features, self.classify(features)
