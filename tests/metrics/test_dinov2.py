"""DINOv2's network and FD-DINOv2, with networks of few numbers: the real one is 1.2 GB."""

import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from transformers import Dinov2Config, Dinov2Model

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.files import sha256
from qdexp.metrics import build, dinov2, reference
from qdexp.metrics.dinov2 import DINOV2, RANDOM_DINOV2, DinoV2, VisionTransformer
from qdexp.metrics.features import extract
from qdexp.metrics.reference import Reference, statistics
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.tables import to_markdown
from qdexp.sampling.shards import read_shards
from qdexp.statistics.frechet import Frechet
from qdexp.tracking.mirror import tags

CellOf = Callable[..., Cell]
SMALL = {"width": 8, "depth": 2, "heads": 2}
ASKED = ("metric=[standard,fd_dinov2]", "method=fp", "protocol.steps=2")


@pytest.fixture
def published(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> DinoV2:
    """A small network in a file of the published form, which stands for the real one."""
    path = tmp_path / "dinov2.pth"
    torch.save(VisionTransformer(**SMALL).state_dict(), path)
    found = replace(DINOV2, **SMALL, weights=path, digest=sha256(path))  # type: ignore[arg-type]
    monkeypatch.setattr("qdexp.metrics.fd_dinov2.DINOV2", found)
    monkeypatch.setitem(dinov2.EXTRACTORS, DINOV2.name, found)
    return found


@pytest.fixture
def rehearsed(monkeypatch: pytest.MonkeyPatch) -> tuple[str, ...]:
    monkeypatch.setattr("qdexp.metrics.fd_dinov2.RANDOM_DINOV2", replace(RANDOM_DINOV2, **SMALL))  # type: ignore[arg-type]
    return (*ASKED, "metric.fd_dinov2.weights=random", "metric.fd_dinov2.reference=random")


def of_transformers(network: VisionTransformer) -> Dinov2Model:
    """The same network by transformers, its position embeddings those of 224 pixels."""
    config = Dinov2Config(
        hidden_size=SMALL["width"],
        num_hidden_layers=SMALL["depth"],
        num_attention_heads=SMALL["heads"],
        image_size=dinov2.SIDE,
        patch_size=dinov2.PATCH,
    )
    other, own = Dinov2Model(config).eval(), network.state_dict()
    with torch.no_grad():
        named = dict(other.named_parameters())
        named["embeddings.position_embeddings"].copy_(network._positions())
        named["embeddings.cls_token"].copy_(own["cls_token"])
        for kind in ("weight", "bias"):
            named[f"embeddings.patch_embeddings.projection.{kind}"].copy_(own[f"patch_embed.proj.{kind}"])
            named[f"layernorm.{kind}"].copy_(own[f"norm.{kind}"])
            for block in range(SMALL["depth"]):
                here, there = f"encoder.layer.{block}", f"blocks.{block}"
                for part, value in zip("qkv", own[f"{there}.attn.qkv.{kind}"].chunk(3), strict=True):
                    named[f"{here}.attention.{part}_proj.{kind}"].copy_(value)
                for name, published in (("attention.o_proj", "attn.proj"), *((one, one) for one in PARTS)):
                    named[f"{here}.{name}.{kind}"].copy_(own[f"{there}.{published}.{kind}"])
                for number in (1, 2):
                    named[f"{here}.layer_scale{number}.lambda1"].copy_(own[f"{there}.ls{number}.gamma"])
    return other


PARTS = ("norm1", "norm2", "mlp.fc1", "mlp.fc2")


def test_the_network_is_that_of_transformers() -> None:
    network = VisionTransformer(**SMALL).eval()
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(0.1 * torch.randn_like(parameter))
    images = torch.randint(256, (3, 3, 224, 224), dtype=torch.uint8)
    mean, deviation = (torch.tensor(one)[:, None, None] for one in (dinov2.MEAN, dinov2.DEVIATION))
    with torch.no_grad():
        expected = of_transformers(network)(((images / 255) - mean) / deviation).pooler_output
        (found,) = network(images)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


def test_positions_are_scaled_as_the_published_code_scales_them() -> None:
    """Cubic convolution (a = -0.75), of a grid whose step is 37 / 16.1, not 37 / 16."""
    network, signal = VisionTransformer(**SMALL), torch.randn(dinov2.TRAINED)
    grid = signal.expand(dinov2.TRAINED, -1).reshape(1, -1, 1).expand(-1, -1, SMALL["width"])
    network.pos_embed.data = torch.cat([torch.zeros(1, 1, SMALL["width"]), grid], dim=1)
    positions = network._positions()
    assert positions.shape == (1, 1 + 16 * 16, SMALL["width"])
    for place in range(2, 14):
        x = ((place + 0.5) * 37 / 16.1 - 0.5 - torch.arange(dinov2.TRAINED)).abs()
        near, far = 1.25 * x**3 - 2.25 * x**2 + 1, -0.75 * (x**3 - 5 * x**2 + 8 * x - 4)
        weights = torch.where(x <= 1, near, torch.where(x < 2, far, 0))
        assert positions[0, 1 + place, 0].item() == pytest.approx(float(weights @ signal), abs=1e-4)


def test_grey_images_are_repeated_and_other_channels_refused() -> None:
    small = replace(RANDOM_DINOV2, **SMALL)  # type: ignore[arg-type]
    grey = torch.randint(256, (2, 1, 20, 20), dtype=torch.uint8)
    one, other = (extract(small, images, 2, torch.device("cpu")).pool for images in (grey, grey.repeat(1, 3, 1, 1)))
    assert torch.equal(one, other) and one.shape == (2, SMALL["width"])
    assert not small.takes([4, 8, 8])


def test_what_is_missing_is_one_line_with_the_fix(published: DinoV2, cell_of: CellOf, tmp_path: Path) -> None:
    def refusal(*options: str) -> str:
        with pytest.raises(UserError) as told:
            cell_of(*ASKED, *options)
        assert "\n" not in str(told.value)
        return str(told.value)

    made = tmp_path / "reference"
    reference.write(made, statistics(torch.randn(20, 8)), published, "mine")
    here = f"metric.fd_dinov2.reference={made}"
    assert refusal().startswith(
        "metric.fd_dinov2.reference=: no such file; make one of real images: python -m qdexp.metrics.build"
    )
    lacks = refusal(here, "metric.fd_dinov2.weights=nowhere.pth")
    assert lacks.startswith("metric.fd_dinov2.weights lacks its weights; fetch https://dl.fbaipublicfiles.com/dinov2/")
    assert lacks.endswith("or name its place as metric.fd_dinov2.weights; without it: metric.fd_dinov2=null")
    torch.save({"other": torch.zeros(2)}, tmp_path / "other.pth")
    other = f"metric.fd_dinov2.weights={tmp_path}/other.pth"
    assert "has not SHA-256" in refusal(here, other)
    with pytest.raises(UserError, match="not the weights of dinov2-vit-l-14 under their published names"):
        replace(published, weights=tmp_path / "other.pth", digest=sha256(tmp_path / "other.pth")).build()
    reference.write(tmp_path / "foreign", statistics(torch.randn(20, 8)), replace(published, digest="0" * 64), "mine")
    assert "was measured with extractor dinov2-vit-l-14 (000000000000), metric.fd_dinov2.weights is" in refusal(
        f"metric.fd_dinov2.reference={tmp_path}/foreign"
    )


def test_a_cell_against_a_reference_of_real_images(
    published: DinoV2, cell_of: CellOf, fashion_images: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The reference is built by the command; one with held-out features has a floor."""
    (tmp_path / "real").mkdir()
    for number, image in enumerate(fashion_images[:40]):
        Image.fromarray(image[0].numpy()).save(tmp_path / "real" / f"{number:02d}.png")
    made = tmp_path / "made.safetensors"
    command = [str(tmp_path / "real"), "--size", "28", "--extractor", "dinov2-vit-l-14", "--out", str(made)]
    monkeypatch.setattr(sys, "argv", ["build", *command])
    build.main()
    real = Reference.load(made)
    parts = {"mu": real.mu, "sigma": real.sigma, "floor_features": extract(published, fashion_images[40:80], 8, CPU).pool}
    reference.write(made, parts, published, "fashion")
    cell = cell_of(*ASKED, f"metric.fd_dinov2.reference={made}")
    record = cell.run()
    images = torch.cat(list(read_shards(cell.out / record["artifacts"]["samples"], "images")))
    expected = Frechet(real.mu.numpy(), real.sigma.numpy()).fid(extract(published, images, 32, CPU).pool.numpy())
    assert record["metrics"]["fd_dinov2"] == pytest.approx(expected.value, rel=1e-6)
    found = Evidence(cell.out).estimates(record)["fd_dinov2"]
    assert found.replicates == pytest.approx(expected.replicates, rel=1e-5)
    assert np.ptp(found.replicates) > 0
    assert record["measures"]["fd_dinov2"]["made_with"]["weights"] == published.digest
    text = to_markdown(compare([record], Evidence(cell.out)))
    assert " FD-DINOv2 |" in text and f"FD-DINOv2: extractor dinov2-vit-l-14, weights {published.digest[:8]}, " in text
    assert f"floor FD-DINOv2 {record['metrics']['fd_dinov2_floor']:.2f}." in text


CPU = torch.device("cpu")


def test_a_rehearsal_says_that_it_means_nothing(rehearsed: tuple[str, ...], cell_of: CellOf) -> None:
    cell = cell_of(*rehearsed)
    record = cell.run()
    assert record["metrics"]["fd_dinov2"] > 0
    text = to_markdown(compare([record], Evidence(cell.out)))
    assert "fd_dinov2: random weights, it means nothing" in text
    assert "fd_dinov2: random" in tags(record)
