from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from qdexp.errors import UserError
from qdexp.files import sha256
from qdexp.metrics import reference
from qdexp.metrics.extractors import EXTRACTORS, FASHION_CNN
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
    with pytest.raises(UserError, match=r"protocol.reference=.*truncated"):
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
    with pytest.raises(UserError, match=r"protocol.reference=.*(no reference|can give no FID)"):
        Reference.load(tmp_path / "weights")


@pytest.mark.parametrize("change", [{"more": "metadata"}, {"sigma": rows(3, 4)}, {"features": rows(4).bfloat16()}])
def test_what_others_have_sealed_is_still_no_reference(tmp_path: Path, change: dict[str, Any]) -> None:
    about = {"extractor": FASHION_CNN.name, "extractor_digest": FASHION_CNN.digest, "dataset": "noise"}
    tensors = {**statistics(rows(40)), **{name: value for name, value in change.items() if name != "more"}}
    about |= {name: value for name, value in change.items() if name == "more"}
    plain = {name: value.float() if value.dtype == torch.bfloat16 else value for name, value in tensors.items()}
    save_file(tensors, tmp_path / "other", {**about, "content_digest": reference._digest(plain, about)})
    with pytest.raises(UserError, match=r"protocol.reference=.*(no reference|can give no FID)"):
        Reference.load(tmp_path / "other")


UNSOUND: dict[str, tuple[dict[str, torch.Tensor], str]] = {
    "one image": ({**statistics(rows(9)), "sigma": torch.full((5, 5), torch.nan)}, "sigma has numbers that are not finite"),
    "not finite": ({**statistics(rows(9)), "mu": torch.full((5,), torch.inf)}, "mu has numbers that are not finite"),
    "of one variable": ({**statistics(rows(9)), "sigma": torch.ones(5)}, r"mu is \[5\] and sigma \[5\]"),
    "of others": ({**statistics(rows(9)), "sigma": torch.eye(4)}, r"mu is \[5\] and sigma \[4, 4\]"),
    "not symmetric": ({**statistics(rows(9)), "sigma": torch.eye(5).roll(1, 0)}, "sigma is no covariance"),
    "negative": ({**statistics(rows(9)), "sigma": -torch.eye(5)}, "sigma is no covariance"),
    "no sigma": ({"mu": torch.ones(5)}, "mu and sigma are not both there"),
    "no sigma_s": ({**statistics(rows(9)), "mu_s": torch.ones(5)}, "mu_s and sigma_s are not both there"),
    "other features": ({**statistics(rows(9)), "features": rows(3, 4)}, r"features is \[3, 4\], not \[m, 5\]"),
    "broken features": ({**statistics(rows(9)), "features": rows(3) * torch.nan}, "features has numbers"),
}


@pytest.mark.parametrize("fault", UNSOUND)
def test_statistics_without_a_finite_fid_are_neither_written_nor_read(
    tmp_path: Path, fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors, message = UNSOUND[fault]
    with pytest.raises(UserError, match=f"made can give no FID \\({message}.*at least 2 images$"):
        write(tmp_path / "made", tensors, FASHION_CNN, "noise")
    assert not (tmp_path / "made").exists()
    with monkeypatch.context() as patch:  # written by somebody who did not look
        patch.setattr("qdexp.metrics.reference._require_sound", lambda *_: None)
        write(tmp_path / "made", tensors, FASHION_CNN, "noise")
    with pytest.raises(UserError, match=f"^protocol.reference=.*made can give no FID \\({message}"):
        Reference.load(tmp_path / "made")


def test_published_statistics_are_looked_at_too(tmp_path: Path) -> None:
    np.savez(tmp_path / "nan.npz", mu=np.zeros(2048), sigma=np.full((2048, 2048), np.nan))
    with pytest.raises(UserError, match=r"nan\.npz can give no FID \(sigma has numbers that are not finite\)"):
        Reference.load(tmp_path / "nan.npz")
    np.savez(tmp_path / "complex.npz", mu=np.zeros(3, complex), sigma=np.eye(3))
    with pytest.raises(UserError, match=r"complex\.npz holds no arrays mu and sigma"):
        Reference.load(tmp_path / "complex.npz")


def test_what_images_were_read_is_a_part_of_the_reference(tmp_path: Path) -> None:
    digests = set()
    for images in ("", "9 PNG L", "9 PNG RGB"):
        write(tmp_path / "made", statistics(rows(9)), FASHION_CNN, "noise", images)
        read = Reference.load(tmp_path / "made")
        assert read.images == images
        digests.add(read.digest)
    assert len(digests) == 3


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
