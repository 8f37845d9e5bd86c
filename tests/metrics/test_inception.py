"""InceptionV3 with random weights in the file that torch-fidelity reads: all but the numbers is as with the real ones."""

import os
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from torch_fidelity.utils import create_feature_extractor

from qdexp.errors import UserError
from qdexp.files import sha256
from qdexp.metrics import build
from qdexp.metrics.extractor import Extractor
from qdexp.metrics.extractors import EXTRACTORS, INCEPTION, RANDOM_INCEPTION
from qdexp.metrics.features import extract
from qdexp.metrics.fid import Fid, fid
from qdexp.metrics.kid import Kid
from qdexp.metrics.precision_recall import PrecisionRecall
from qdexp.metrics.reference import Reference, statistics


@pytest.fixture(scope="module")
def inception(tmp_path_factory: pytest.TempPathFactory) -> Extractor:
    path = tmp_path_factory.mktemp("inception") / "weights.pth"
    untrained: Any = RANDOM_INCEPTION.build()
    torch.save(untrained.network.state_dict(), path)
    return replace(INCEPTION, weights=path, digest=sha256(path))


@pytest.fixture(scope="module")
def images() -> Tensor:
    return torch.randint(256, (12, 3, 24, 24), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))


def test_spatial_features_are_seven_maps_channels_last(inception: Extractor, images: Tensor) -> None:
    network: Any = inception.build()
    kept: list[Tensor] = []
    network.network.Mixed_6d.branch1x1.register_forward_hook(lambda *call: kept.append(call[2]))
    pool, logits, spatial = network(images[:2])
    assert (pool.shape, logits.shape, spatial.shape) == ((2, 2048), (2, 1008), (2, 17 * 17 * 7))
    maps = spatial.view(2, 17, 17, 7)
    for channel in range(7):
        assert torch.equal(maps[..., channel], kept[0][:, channel])


def test_random_weights_are_the_same_every_time_and_let_features_live(inception: Extractor, images: Tensor) -> None:
    torch.manual_seed(3)
    once, kept = (extract(extractor, images[:2], 2, torch.device("cpu")) for extractor in (RANDOM_INCEPTION, inception))
    assert once.logits is not None and kept.logits is not None
    assert torch.equal(once.pool, kept.pool) and torch.equal(once.logits, kept.logits)
    assert 0.1 < once.pool.std() < 10 and (once.pool[0] - once.pool[1]).abs().mean() > 1e-3


@pytest.mark.slow
def test_scores_of_images_with_their_own_statistics(inception: Extractor, images: Tensor, tmp_path: Path) -> None:
    found = extract(inception, images, 8, torch.device("cpu"))
    assert found.spatial is not None
    parts = {**statistics(found.pool), **{f"{name}_s": value for name, value in statistics(found.spatial).items()}}
    mu, sigma, mu_s, sigma_s = (parts[name].numpy() for name in ("mu", "sigma", "mu_s", "sigma_s"))
    np.savez(tmp_path / "published.npz", mu=mu, sigma=sigma, mu_s=mu_s, sigma_s=sigma_s)
    reference = Reference.load(tmp_path / "published.npz")
    reference.check(INCEPTION)
    scores = Fid().score(found, reference)
    assert scores.keys() == {"fid", "sfid"}
    assert not {**Kid(seed=0).score(found, reference), **PrecisionRecall().score(found, reference)}  # moments give no more
    assert fid(found.pool, reference) == pytest.approx(0, abs=1e-5)
    assert scores["sfid"] == pytest.approx(0, abs=1e-4)
    shifted = replace(reference, mu_s=parts["mu_s"] + 0.1)
    assert Fid().score(found, shifted)["sfid"] == pytest.approx(0.01 * 2023, rel=1e-3)


def test_a_reference_is_built_from_a_folder(
    inception: Extractor, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(EXTRACTORS, INCEPTION.name, replace(inception, weights=tmp_path / "elsewhere"))
    (tmp_path / "lsun" / "a").mkdir(parents=True)
    for number, image in enumerate(images):
        ending = "webp" if number % 2 else "png"
        Image.fromarray(image.permute(1, 2, 0).numpy()).save(tmp_path / "lsun" / "a" / f"{number:02d}.{ending}", lossless=True)
    command = [str(tmp_path / "lsun"), "--out", str(tmp_path / "made"), "--weights", str(inception.weights), "--size", "24"]
    monkeypatch.setattr(sys, "argv", ["build", *command, "--keep", "5", "--n", "11"])
    build.main()
    made = Reference.load(tmp_path / "made")
    made.check(inception)
    assert made.dataset == "lsun, 11 images, prepared none"
    assert made.features is not None
    assert made.features.shape == (5, 2048)
    truth = extract(inception, images[:11], 64, torch.device("cpu"))
    torch.testing.assert_close(made.mu, statistics(truth.pool)["mu"])
    assert made.mu_s is not None
    assert made.mu_s.shape == (2023,)
    printed = capsys.readouterr().out
    assert "lsun, 11 images" in printed
    assert made.images == "6 PNG RGB, 5 WEBP RGB"
    assert f"read {made.images}\n" in printed


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["nowhere", "--size", "8"], "nowhere: no folder, and none of cifar10-train"),
        (["cifar10-train", "--root", "empty"], "cifar10-train: not in empty; put it there"),
        (["one", "--prepare", "ldm"], "--size is missing"),
        (["bare", "--size", "8"], r"holds no image"),
        ([".", "--size", "0"], "--size 0: choose at least 1"),
        ([".", "--n", "1"], "--n 1: choose at least 2"),
        (["one", "--size", "8"], "one: holds 1 image, which has no covariance"),
        ([".", "--out", "file/made"], "--out file/made: .*; choose a folder that can be written to"),
        ([".", "--extractor", "inception-v3", "--weights", "lost.pth"], "--weights lost.pth: no such file; fetch https://"),
    ],
)
def test_what_is_missing_is_one_line(
    arguments: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    (tmp_path / "bare").mkdir()
    (tmp_path / "one").mkdir()
    Image.new("RGB", (8, 8)).save(tmp_path / "one" / "alone.tif")
    monkeypatch.setattr(sys, "argv", ["build", "--out", "made", "--extractor", "inception-v3-random", *arguments])
    with pytest.raises(SystemExit, match=f"qdexp: .*{message}"):
        build.main()


def test_missing_inception_weights_say_where_they_can_be_had(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"inception-v3 lacks its weights; fetch https://.*protocol\.extractor_weights"):
        replace(INCEPTION, weights=tmp_path / "nowhere").build()


class Command:
    """Unpickled, it runs a command of the shell."""

    def __init__(self, command: str) -> None:
        self.command = command

    def __reduce__(self) -> Any:
        return os.system, (self.command,)


def test_no_weights_are_unpickled_but_the_pinned_ones(
    inception: Extractor, images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither by protocol and command line, nor by torch-fidelity's own name and cache, nor where files are swapped."""
    ran, evil = tmp_path / "ran", tmp_path / "cache" / inception.weights.name
    evil.parent.mkdir(parents=True)
    torch.save(Command(f"touch {ran}"), evil)
    monkeypatch.setattr("qdexp.metrics.extractors.INCEPTION", replace(INCEPTION, weights=evil))
    (tmp_path / "images").mkdir()
    for number in range(2):
        Image.fromarray(images[number].permute(1, 2, 0).numpy()).save(tmp_path / "images" / f"{number}.png")
    command = [str(tmp_path / "images"), "--size", "24", "--out", str(tmp_path / "made"), "--weights", str(evil)]
    monkeypatch.setattr(sys, "argv", ["build", *command])
    with pytest.raises(SystemExit, match="has not SHA-256"):
        build.main()
    ways: list[Callable[[], object]] = [
        replace(INCEPTION, weights=evil).build,
        lambda: create_feature_extractor("inception-v3", ["2048"], cuda=False, verbose=False),
        lambda: create_feature_extractor(
            "inception-v3", ["2048"], feature_extractor_weights_path=str(evil), cuda=False, verbose=False
        ),
    ]
    for way in ways:
        with pytest.raises(UserError, match="has not SHA-256"):
            way()
    swapped = replace(inception, weights=evil)
    monkeypatch.setattr("qdexp.metrics.extractor.sha256", lambda _: inception.digest)  # of the file that was there before
    with pytest.raises(UserError, match="has not SHA-256"):
        swapped.build()
    assert not ran.exists()
    torch.load(evil, weights_only=False)
    assert ran.exists()


@pytest.mark.parametrize("change", ["bomb", "header", "pickle", "no zip", "unknown compression"])
def test_published_statistics_that_are_none(tmp_path: Path, change: str) -> None:
    path = tmp_path / "published.npz"
    if change == "pickle":
        np.savez(path, mu=np.zeros(2048), sigma=np.array([Command(f"touch {tmp_path / 'ran'}")], dtype=object))
    elif change == "no zip":
        path.write_bytes(b"PK\3\4 and no more")
    elif change == "header":  # of an array that its bytes do not fill
        np.savez(path, mu=np.zeros(2048), sigma=np.zeros((1111, 1111)))
        members = {}
        with zipfile.ZipFile(path) as archive:
            for name in archive.namelist():
                members[name] = archive.read(name).replace(b"(1111, 1111)", b"(1" + 9 * b"0" + b",)")
        with zipfile.ZipFile(path, "w") as archive:
            for name, content in members.items():
                archive.writestr(name, content)
    else:
        np.savez_compressed(path, mu=np.zeros(2**24), sigma=np.zeros(4))
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"\x08\0", b"\x63\0") if change == "unknown compression" else raw)
    with pytest.raises(UserError, match="holds no arrays mu and sigma"):
        Reference.load(path)
    assert not (tmp_path / "ran").exists()


def test_statistics_of_other_features_are_refused(tmp_path: Path) -> None:
    np.savez(tmp_path / "small.npz", mu=np.zeros(4), sigma=np.eye(4))
    np.savez(tmp_path / "other.npz", weights=np.zeros(4))
    with pytest.raises(UserError, match="statistics of \\[4\\] features, not of InceptionV3's 2048"):
        Reference.load(tmp_path / "small.npz")
    with pytest.raises(UserError, match="holds no arrays mu and sigma"):
        Reference.load(tmp_path / "other.npz")


def test_the_command_has_a_help_page(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(sys, "argv", ["qdexp.metrics.build", "--help"])
    with pytest.raises(SystemExit) as stop:
        build.main()
    assert stop.value.code == 0
    printed = capsys.readouterr().out
    assert "--prepare {none,ldm,adm}" in printed
    assert "inception-v3, inception-v3-random, dinov2-vit-l-14" in " ".join(printed.split())
