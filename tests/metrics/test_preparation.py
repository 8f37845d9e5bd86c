import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from qdexp.errors import UserError
from qdexp.metrics.preparation import ImageFolder, adm, common_side, ldm, none


def gradient(width: int, height: int) -> Image.Image:
    x, y = np.meshgrid(np.linspace(0, 255, width), np.linspace(0, 255, height))
    return Image.fromarray(np.stack([x, y, (x + y) / 2], axis=-1).round().astype(np.uint8))


@pytest.mark.parametrize("prepare", [ldm, adm])
@pytest.mark.parametrize(("width", "height"), [(40, 16), (16, 40), (37, 90)])
def test_the_middle_square_fills_the_image(prepare: object, width: int, height: int) -> None:
    assert callable(prepare)
    image = np.asarray(prepare(gradient(width, height), 8)).astype(float)
    assert image.shape == (8, 8, 3)
    side = min(width, height)
    for channel, length in enumerate((width, height)):
        ends = [127.5 + 255 * sign * (side / length) * 7 / 16 for sign in (-1, 1)]
        line = image[:, :, channel].mean(axis=channel)
        np.testing.assert_allclose([line[0], line[-1]], ends, atol=8)


def test_adm_halves_by_means_where_ldm_does_not() -> None:
    noise = Image.fromarray(np.random.default_rng(0).integers(0, 256, (64, 64, 3), dtype=np.uint8))
    means = np.asarray(noise).reshape(8, 8, 8, 8, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(np.asarray(adm(noise, 8)).astype(float), means, atol=3)
    assert not torch.equal(torch.from_numpy(np.array(adm(noise, 8))), torch.from_numpy(np.array(ldm(noise, 8))))


def test_a_file_that_is_no_image_of_its_kind_is_named(tmp_path: Path) -> None:
    """Among them one that the library would hand to Ghostscript, and one that unpacks to gigabytes."""
    kinds = {
        "script.png": b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 8 8\n%%EndComments\n(x) print\n%%EOF\n",
        "text.png": b"no image",
        "broken.png": b"\x89PNG\r\n\x1a\n" + b"\0" * 40,
        "bomb.png": png(50_000, 50_000),
    }
    for name, content in kinds.items():
        (tmp_path / name).write_bytes(content)
        folder = ImageFolder(tmp_path, "ldm", 8)
        assert [path.name for path in folder.paths] == [name]
        with pytest.raises(UserError, match=rf"{name}: cannot be read as an image"):
            folder[0]
        (tmp_path / name).unlink()


def png(width: int, height: int) -> bytes:
    """One that says that it is so large."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 0, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(bytes(1000))) + chunk(b"IEND", b"")


def test_none_refuses_another_size() -> None:
    assert none(gradient(8, 8), 8).size == (8, 8)
    with pytest.raises(UserError, match="an image is 9x8, not 8x8"):
        none(gradient(9, 8), 8)


def test_the_side_that_all_images_have(tmp_path: Path) -> None:
    gradient(8, 8).save(tmp_path / "a.png")
    gradient(8, 8).save(tmp_path / "b.jpg")
    assert common_side(tmp_path) == 8
    gradient(8, 9).save(tmp_path / "c.png")
    with pytest.raises(UserError, match=r"^--size is missing: .* \(a\.png 8x8, c\.png 8x9\); name the pixels"):
        common_side(tmp_path)
    (tmp_path / "b.jpg").write_bytes(b"none")
    with pytest.raises(UserError, match=r"b\.jpg: cannot be read as an image"):
        common_side(tmp_path)
