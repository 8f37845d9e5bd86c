import pytest
import torch
from torch import Tensor

from qdexp.errors import UserError
from qdexp.metrics.extractors import FASHION_CNN, INCEPTION
from qdexp.metrics.features import Features, extract
from qdexp.metrics.reference import Reference

CPU = torch.device("cpu")


def test_features_are_those_of_the_network_in_the_order_of_the_images(
    fashion_images: Tensor, fashion_features: Features
) -> None:
    pool, logits = FASHION_CNN.build()(fashion_images)
    assert fashion_features.logits is not None
    assert fashion_features.pool.dtype == fashion_features.logits.dtype == torch.float32
    torch.testing.assert_close(fashion_features.pool, pool, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(fashion_features.logits, logits, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("batch_size", [1, 7, 100])
def test_the_batch_size_does_not_matter(fashion_images: Tensor, fashion_features: Features, batch_size: int) -> None:
    some = extract(FASHION_CNN, fashion_images[:50], batch_size, CPU)
    torch.testing.assert_close(some.pool, fashion_features.pool[:50], rtol=1e-4, atol=1e-5)
    assert fashion_features.logits is not None
    torch.testing.assert_close(some.logits, fashion_features.logits[:50], rtol=1e-4, atol=1e-4)


def test_the_floor_of_the_reference_is_the_test_images_in_order(
    fashion_features: Features, fashion_reference: Reference
) -> None:
    assert fashion_reference.floor_features is not None
    torch.testing.assert_close(fashion_reference.floor_features[:1024], fashion_features.pool, rtol=1e-4, atol=1e-5)


def test_extraction_says_nothing(fashion_images: Tensor, capfd: pytest.CaptureFixture[str]) -> None:
    extract(FASHION_CNN, fashion_images[:4], 2, CPU)
    assert capfd.readouterr() == ("", "")


def test_images_of_another_shape_are_answered_with_the_right_one() -> None:
    with pytest.raises(UserError, match=r"inception-v3 takes images of shape \[3\].*\[1, 28, 28\]"):
        extract(INCEPTION, torch.zeros(2, 1, 28, 28, dtype=torch.uint8), 2, CPU)
