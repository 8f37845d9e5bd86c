from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY
from torch_fidelity.utils import create_feature_extractor

from qdexp.errors import UserError
from qdexp.metrics.extractors import EXTRACTORS, FASHION_CNN, FashionExtractor, find


@pytest.mark.parametrize("name", EXTRACTORS)
def test_the_table_names_outputs_that_torch_fidelity_provides(name: str) -> None:
    extractor = find(name)
    provided = FEATURE_EXTRACTORS_REGISTRY[name].get_provided_features_list()
    assert {extractor.pool, extractor.logits} <= set(provided)


@pytest.mark.parametrize("name", EXTRACTORS)
def test_the_table_agrees_with_torch_fidelity_on_what_a_metric_reads(name: str) -> None:
    default = FEATURE_EXTRACTORS_REGISTRY[name].get_default_feature_layer_for_metric
    assert [default(metric) for metric in ("fid", "kid", "prc")] == [find(name).pool] * 3
    assert default("isc") == find(name).logits


def test_torch_fidelity_builds_ours_by_name_with_the_outputs_in_the_order_asked() -> None:
    images = torch.randint(256, (3, 1, 28, 28), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    by_name = create_feature_extractor("fashion-cnn", ["logits", "64"], cuda=False, verbose=False)
    pool, logits = FASHION_CNN.build()(images)
    assert isinstance(by_name, FashionExtractor)
    assert torch.equal(by_name(images)[0], logits)
    assert torch.equal(by_name(images)[1], pool)
    assert pool.shape == (3, 64)
    assert logits.shape == (3, 10)


def test_ours_refuses_images_it_was_not_trained_on() -> None:
    with pytest.raises(ValueError, match="uint8 images"):
        FASHION_CNN.build()(torch.rand(2, 1, 28, 28))
    with pytest.raises(ValueError, match="28, 28"):
        FASHION_CNN.build()(torch.zeros(2, 1, 32, 32, dtype=torch.uint8))


def test_one_changed_bit_of_the_weights_is_refused(tmp_path: Path) -> None:
    content = bytearray(FASHION_CNN.weights.read_bytes())
    content[-1] ^= 1
    changed = tmp_path / "model.safetensors"
    changed.write_bytes(content)
    with pytest.raises(UserError, match=r"protocol.extractor=fashion-cnn.*restore"):
        replace(FASHION_CNN, weights=changed).build()


@pytest.mark.parametrize("name", [name for name, extractor in EXTRACTORS.items() if not extractor.random])
def test_missing_weights_are_named(name: str, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=f"protocol.extractor={name} lacks its weights.*nowhere"):
        replace(find(name), weights=tmp_path / "nowhere").build()


def test_an_unknown_extractor_is_answered_with_the_known_ones() -> None:
    with pytest.raises(UserError, match=r"protocol.extractor=vgg.*fashion-cnn, inception-v3"):
        find("vgg")
