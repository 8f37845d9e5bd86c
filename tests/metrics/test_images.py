"""Which files of a folder are images, and what their pixels are."""

import os
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdexp.errors import UserError
from qdexp.metrics.images import listing, read
from qdexp.metrics.preparation import ImageFolder

COLOURS = np.random.default_rng(0).integers(0, 256, (6, 8, 3), dtype=np.uint8)
GREYS = COLOURS[..., 0]
SIXTEEN = np.random.default_rng(1).integers(0, 65536, (6, 8)).astype(np.uint16)


def pixels(path: Path) -> np.ndarray[Any, Any]:
    image, _ = read(path)
    assert image.mode == "RGB"
    return np.asarray(image)


@pytest.mark.parametrize("name", ["a.png", "a.TIF", "a.ppm", "a.bmp", "a.webp", "a.tga", "a.qoi", "a.jp2"])
def test_the_colours_of_a_lossless_file(tmp_path: Path, name: str) -> None:
    Image.fromarray(COLOURS).save(tmp_path / name, lossless=True)
    assert [path.name for path in listing(tmp_path).paths] == [name]
    np.testing.assert_array_equal(pixels(tmp_path / name), COLOURS)


@pytest.mark.parametrize("name", ["a.jfif", "a.jpe", "a.avif", "a.JPG"])
def test_the_colours_of_a_lossy_file(tmp_path: Path, name: str) -> None:
    flat = np.full((16, 16, 3), (200, 90, 40), np.uint8)
    Image.fromarray(flat).save(tmp_path / name, quality=95)
    assert len(listing(tmp_path).paths) == 1
    np.testing.assert_allclose(pixels(tmp_path / name), flat, atol=4)


def grey(array: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    return np.stack([array] * 3, axis=-1)


def pgm(path: Path, array: np.ndarray[Any, Any]) -> None:
    path.write_bytes(b"P5 8 6 65535\n" + array.astype(">u2").tobytes())


KINDS: dict[str, tuple[str, Callable[[Path], object], np.ndarray[Any, Any]]] = {
    "grey": ("a.png", lambda path: Image.fromarray(GREYS).save(path), grey(GREYS)),
    "16-bit grey": ("a.png", lambda path: Image.fromarray(SIXTEEN).save(path), grey(SIXTEEN >> 8)),
    "16-bit grey in TIFF": ("a.tif", lambda path: Image.fromarray(SIXTEEN).save(path), grey(SIXTEEN >> 8)),
    "16-bit grey in TIFF, big-endian": (
        "a.tif",
        lambda path: Image.frombytes("I;16B", (8, 6), SIXTEEN.astype(">u2").tobytes()).save(path),
        grey(SIXTEEN >> 8),
    ),
    "16-bit grey in PGM": ("a.pgm", lambda path: pgm(path, SIXTEEN), grey(SIXTEEN >> 8)),
    "16-bit colour": (
        "a.ppm",
        lambda path: path.write_bytes(b"P6 8 6 65535\n" + (COLOURS.astype(">u2") * 257).tobytes()),
        COLOURS,
    ),
    "one bit": ("a.png", lambda path: Image.fromarray(GREYS > 127).save(path), grey(np.where(GREYS > 127, 255, 0))),
    "palette": ("a.gif", lambda path: Image.fromarray(GREYS).convert("P").save(path), grey(GREYS)),
    "alpha without effect": (
        "a.png",
        lambda path: Image.fromarray(np.dstack([COLOURS, np.full((6, 8), 255, np.uint8)])).save(path),
        COLOURS,
    ),
    "CMYK": ("a.tif", lambda path: Image.fromarray(COLOURS).convert("CMYK").save(path), COLOURS),
}


@pytest.mark.parametrize("kind", KINDS)
def test_what_pixels_mean(tmp_path: Path, kind: str) -> None:
    name, save, expected = KINDS[kind]
    save(tmp_path / name)
    np.testing.assert_array_equal(pixels(tmp_path / name), expected)


def test_a_photograph_stands_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was turned: to be shown turned clockwise
    Image.fromarray(COLOURS).save(tmp_path / "a.png", exif=exif)
    image, kind = read(tmp_path / "a.png")
    np.testing.assert_array_equal(np.asarray(image), np.rot90(COLOURS, -1))
    assert kind == "PNG RGB turned by EXIF"
    assert read_kind(tmp_path, orientation=1) == read_kind(tmp_path, orientation=99) == "PNG RGB"


def read_kind(folder: Path, orientation: int) -> str:
    exif = Image.Exif()
    exif[0x0112] = orientation
    Image.fromarray(COLOURS).save(folder / "b.png", exif=exif)
    image, kind = read(folder / "b.png")
    np.testing.assert_array_equal(np.asarray(image), COLOURS)
    return kind


def animation(path: Path) -> None:
    first, *others = (Image.fromarray(np.full((6, 8, 3), value, np.uint8)) for value in (0, 100, 200))
    first.save(path, save_all=True, append_images=others)


def clear(path: Path, mode: str = "RGBA") -> None:
    Image.new(mode, (8, 6), (10, 200) if mode == "LA" else (10, 20, 30, 200)).save(path)


REFUSED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "animated gif": ("a.gif", animation, "has 3 frames"),
    "animated png": ("a.apng", animation, "has 3 frames"),
    "animated webp": ("a.webp", animation, "has 3 frames"),
    "pages": ("a.tiff", animation, "has 3 frames"),
    "transparent": ("a.png", clear, "transparent pixels"),
    "transparent grey": ("a.png", lambda path: clear(path, "LA"), "transparent pixels"),
    "transparent palette": (
        "a.png",
        lambda path: Image.fromarray(GREYS).convert("P").save(path, transparency=int(GREYS[0, 0])),
        "transparent pixels",
    ),
    "transparent colour": ("a.png", lambda path: Image.new("RGB", (8, 6)).save(path, transparency=(0, 0, 0)), "transparent"),
    "32-bit integers": ("a.tif", lambda path: Image.fromarray(SIXTEEN.astype(np.int32)).save(path), "32 bits a pixel"),
    "floats": ("a.tif", lambda path: Image.fromarray(GREYS.astype(np.float32)).save(path), "32 bits a pixel"),
    "text": ("a.jpg", lambda path: path.write_text("no image"), "cannot be read as an image"),
    "empty": ("a.png", lambda path: path.write_bytes(b""), "cannot be read as an image"),
    "dangling link": ("a.png", lambda path: path.symlink_to("nowhere"), "cannot be read as an image"),
    "PostScript": ("a.png", lambda path: path.write_bytes(b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n"), "cannot be"),
}


@pytest.mark.parametrize("kind", REFUSED)
def test_what_would_be_a_guess_is_one_line(tmp_path: Path, kind: str) -> None:
    name, save, message = REFUSED[kind]
    save(tmp_path / name)
    with pytest.raises(UserError, match=message) as caught:
        ImageFolder(tmp_path, "none", 8)[0]
    assert str(caught.value).startswith(f"{tmp_path / name}: ") and "\n" not in str(caught.value)


@pytest.mark.parametrize("name", ["a.png", "a.jpg", "a.webp", "a.tif", "a.bmp", "a.ppm"])
@pytest.mark.parametrize("left", [0.05, 0.5, 0.9])
def test_a_truncated_image_is_one_line(tmp_path: Path, name: str, left: float) -> None:
    noise = np.random.default_rng(2).integers(0, 256, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(tmp_path / name)
    whole = (tmp_path / name).read_bytes()
    (tmp_path / name).write_bytes(whole[: int(len(whole) * left)])
    with warnings.catch_warnings(), pytest.raises(UserError, match="cannot be read as an image"):
        warnings.simplefilter("ignore")
        read(tmp_path / name)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Four images: two in a folder, one in a folder that is linked, one beside; and what is none, or there already."""
    images = ("set/cat/1.png", "set/cat/2.png", "elsewhere/dog/3.png", "set/4.png")
    for place in (*images, "set/.ipynb_checkpoints/4-checkpoint.png", "set/cat/._1.png"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(COLOURS).save(tmp_path / place)
    (tmp_path / "set/labels.txt").write_text("cat dog")
    (tmp_path / "set/README").write_text("")
    (tmp_path / "set/dog").symlink_to(tmp_path / "elsewhere/dog")
    (tmp_path / "set/zoo").symlink_to(tmp_path / "elsewhere/dog")
    (tmp_path / "set/5.png").symlink_to(tmp_path / "set/4.png")
    (tmp_path / "set/cat/up").symlink_to(tmp_path / "set")
    os.mkfifo(tmp_path / "set/6.png")
    return tmp_path / "set"


def test_every_image_of_a_tree_is_read_once(tree: Path) -> None:
    found = listing(tree)
    assert [str(path.relative_to(tree)) for path in found.paths] == ["4.png", "cat/1.png", "cat/2.png", "dog/3.png"]
    assert found.left_out == {"hidden": 2, "folders reached twice": 2, "reached twice": 1, ".txt": 1, "without an ending": 1,
                              "no files": 1}  # fmt: skip


def test_the_account_says_what_was_read(tree: Path) -> None:
    Image.fromarray(GREYS).save(tree / "grey.tif")
    images = ImageFolder(tree, "ldm", 4)
    for index in (0, 0, *range(len(images))):
        assert images[index].shape == (3, 4, 4)
    assert images.account.startswith("4 PNG RGB, 1 TIFF L; left out: 2 ")
    assert "1 .txt" in images.account


def test_a_folder_of_other_files_says_what_it_holds(tmp_path: Path) -> None:
    (tmp_path / "data.mdb").write_text("")
    with pytest.raises(UserError, match=r"holds no image \(.*left out: 1 \.mdb\); name a folder of images"):
        ImageFolder(tmp_path, "none", 8)
