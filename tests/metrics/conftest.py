"""Real images and their features, shared by the tests of the metrics."""

from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from qdexp.metrics.extractors import FASHION_CNN
from qdexp.metrics.features import Features, extract
from qdexp.metrics.reference import Reference
from qdexp.paths import ZOO

MOSAIC = Path(__file__).parents[1] / "data" / "fashion_test_1024.png"


@pytest.fixture(scope="session")
def fashion_images() -> Tensor:
    """The first 1,024 test images of Fashion-MNIST, uint8 [1024, 1, 28, 28]."""
    mosaic = torch.from_numpy(np.array(Image.open(MOSAIC)))
    return mosaic.reshape(32, 28, 32, 28).permute(0, 2, 1, 3).reshape(1024, 1, 28, 28)


@pytest.fixture(scope="session")
def fashion_features(fashion_images: Tensor) -> Features:
    return extract(FASHION_CNN, fashion_images, 256, torch.device("cpu"))


@pytest.fixture(scope="session")
def fashion_reference() -> Reference:
    return Reference.load(ZOO / "fashion_cnn" / "reference.safetensors")
