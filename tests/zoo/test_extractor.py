import pytest
import torch
from safetensors.torch import load_file

from qdexp.files import sha256
from qdexp.metrics.extractors import FASHION_CNN
from qdexp.zoo.extractor import FashionCNN
from qdexp.zoo.train_extractor import SHIFT, augment


@pytest.fixture
def trained() -> FashionCNN:
    network = FashionCNN().eval()
    network.load_state_dict(load_file(FASHION_CNN.weights))
    return network


def images(n: int) -> torch.Tensor:
    return torch.randint(256, (n, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(n))


def test_the_network_is_small() -> None:
    assert sum(p.numel() for p in FashionCNN().parameters()) < 1_000_000
    assert FASHION_CNN.weights.stat().st_size < 4_000_000
    assert {v.dtype for v in load_file(FASHION_CNN.weights).values()} == {torch.float32, torch.int64}  # int64: batches seen


def test_shapes(trained: FashionCNN) -> None:
    features, logits = trained(images(5))
    assert features.shape == (5, 64)
    assert logits.shape == (5, 10)


def test_logits_are_linear_in_the_features(trained: FashionCNN) -> None:
    features, logits = trained(images(5))
    weight, bias = trained.classify.weight, trained.classify.bias
    torch.testing.assert_close(logits, features @ weight.T + bias)


def test_every_feature_is_alive(trained: FashionCNN) -> None:
    assert (trained(images(64))[0] > 0).any(dim=0).all()


def test_augmentation_is_a_mirror_and_a_shift_of_each_image() -> None:
    x = images(200)
    moved = augment(x, seed=0)
    padded = torch.nn.functional.pad(x, [SHIFT] * 4)
    seen = set()
    for before, after in zip(padded, moved, strict=True):
        matches = [
            (down, right, mirrored)
            for down in range(2 * SHIFT + 1)
            for right in range(2 * SHIFT + 1)
            for mirrored in (False, True)
            if torch.equal(after, _crop(before, down, right, mirrored))
        ]
        assert len(matches) == 1
        seen.add(matches[0])
    assert len(seen) > 40  # of 50
    assert torch.equal(moved, augment(x, seed=0))
    assert not torch.equal(moved, augment(x, seed=1))


def _crop(padded: torch.Tensor, down: int, right: int, mirrored: bool) -> torch.Tensor:
    crop = padded[:, down : down + 28, right : right + 28]
    return crop.flip(-1) if mirrored else crop


def test_the_card_speaks_of_these_files() -> None:
    folder = FASHION_CNN.weights.parent
    card = (folder / "CARD.md").read_text()
    assert FASHION_CNN.digest in card
    assert sha256(folder / "reference.safetensors") in card
    assert f"{sum(p.numel() for p in FashionCNN().parameters()):,}" in card
