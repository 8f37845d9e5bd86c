from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qdexp.errors import UserError
from qdexp.metrics import reference
from qdexp.metrics.extractors import EXTRACTORS, FASHION_CNN, sha256
from qdexp.metrics.reference import Reference, statistics, write


def rows(n: int, d: int = 5) -> torch.Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(n))


@pytest.fixture
def written(tmp_path: Path) -> Path:
    path = tmp_path / "reference.safetensors"
    write(path, {**statistics(rows(40)), "features": rows(12), "floor_features": rows(8)}, FASHION_CNN, "noise")
    return path


def test_what_was_written_is_read(written: Path) -> None:
    read = Reference.load(written)
    assert read.features is not None
    assert torch.equal(read.features, rows(12))
    assert read.floor_features is not None
    assert torch.equal(read.floor_features, rows(8))
    assert (read.extractor, read.extractor_digest, read.dataset) == ("fashion-cnn", FASHION_CNN.digest, "noise")
    assert read.digest == sha256(written)
    assert [file.name for file in written.parent.iterdir()] == [written.name]


def test_statistics_are_mean_and_unbiased_covariance_in_float64(written: Path) -> None:
    read = Reference.load(written)
    x = rows(40).double().numpy()
    sigma = sum(np.outer(row - x.mean(0), row - x.mean(0)) for row in x) / 39
    np.testing.assert_allclose(read.mu, x.mean(0), rtol=1e-12)
    np.testing.assert_allclose(read.sigma, sigma, rtol=1e-12)


def test_statistics_alone_are_a_reference(tmp_path: Path) -> None:
    write(tmp_path / "bare", statistics(rows(40)), FASHION_CNN, "noise")
    read = Reference.load(tmp_path / "bare")
    assert read.features is None
    assert read.floor_features is None


@pytest.mark.parametrize("size", [0, 5, 300, -1])
def test_a_torn_file_is_refused(written: Path, size: int) -> None:
    written.write_bytes(written.read_bytes()[:size])
    with pytest.raises(UserError, match=r"protocol.reference=.*torn"):
        Reference.load(written)


def test_one_changed_bit_is_refused(written: Path) -> None:
    content = bytearray(written.read_bytes())
    content[-1] ^= 1
    written.write_bytes(content)
    with pytest.raises(UserError, match=r"protocol.reference=.*changed"):
        Reference.load(written)


def test_an_exchanged_name_is_refused(written: Path) -> None:
    written.write_bytes(written.read_bytes().replace(b'"noise"', b'"other"'))
    with pytest.raises(UserError, match=r"protocol.reference=.*changed"):
        Reference.load(written)


def test_other_safetensors_are_refused(tmp_path: Path) -> None:
    save_file({"mu": rows(3)}, tmp_path / "weights")
    with pytest.raises(UserError, match=r"protocol.reference=.*no reference"):
        Reference.load(tmp_path / "weights")


@pytest.mark.parametrize("change", [{"more": "metadata"}, {"sigma": rows(3, 4)}, {"features": rows(4).bfloat16()}])
def test_what_others_have_sealed_is_still_no_reference(tmp_path: Path, change: dict[str, Any]) -> None:
    about = {"extractor": FASHION_CNN.name, "extractor_digest": FASHION_CNN.digest, "dataset": "noise"}
    tensors = {**statistics(rows(40)), **{name: value for name, value in change.items() if name != "more"}}
    about |= {name: value for name, value in change.items() if name == "more"}
    plain = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in tensors.items()}
    save_file(tensors, tmp_path / "other", {**about, "content_digest": reference._digest(plain, about)})
    with pytest.raises(UserError, match=r"protocol.reference=.*no reference"):
        Reference.load(tmp_path / "other")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"protocol.reference=.*nowhere does not exist"):
        Reference.load(tmp_path / "nowhere")


def test_a_reference_fits_only_the_extractor_it_was_measured_with(written: Path) -> None:
    read = Reference.load(written)
    read.check(FASHION_CNN)
    for other in (EXTRACTORS["inception-v3"], replace(FASHION_CNN, digest="0" * 64)):
        with pytest.raises(UserError, match="choose a reference"):
            read.check(other)


def test_the_embedded_reference_fits_the_embedded_extractor(fashion_reference: Reference) -> None:
    fashion_reference.check(FASHION_CNN)
    assert fashion_reference.mu.shape == (64,)
    assert fashion_reference.sigma.shape == (64, 64)
    assert fashion_reference.mu.dtype == fashion_reference.sigma.dtype == torch.float64
    assert fashion_reference.features is not None
    assert fashion_reference.floor_features is not None
    assert fashion_reference.features.shape == fashion_reference.floor_features.shape == (10_000, 64)
    # a random sixth of the images whose statistics these are: means agree within four standard errors
    error = (fashion_reference.features.double().mean(0) - fashion_reference.mu).abs()
    assert (error < 4 * (fashion_reference.sigma.diagonal() / 10_000).sqrt()).all()
