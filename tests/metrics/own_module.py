"""A tiny feature extractor, as a user writes one."""

from torch import Tensor, nn


class Means(nn.Module):
    """The mean colours after a random mixing, shifted."""

    def __init__(self, width: int = 4, shift: float = 0.0) -> None:
        super().__init__()
        self.mix, self.shift = nn.Linear(3, width), shift

    def forward(self, images: Tensor) -> Tensor:
        assert images.shape[2:] == (8, 8) and images.min() >= 0 and images.max() <= 1
        return self.mix(images.mean((2, 3))) + self.shift


class Maps(Means):
    """Gives no features."""

    def forward(self, images: Tensor) -> Tensor:
        return images
