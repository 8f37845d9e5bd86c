from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from qdexp.report.grid import GAP, PAPER, TILE, sample_grid

Pixels = NDArray[np.uint8]


def samples(k: int, c: int, side: int, seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (k, c, side, side), dtype=np.uint8)


def render(rows: list[tuple[str, Pixels]], tmp_path: Path) -> Pixels:
    sample_grid(rows, tmp_path / "grid.png")
    assert [path.name for path in tmp_path.iterdir()] == ["grid.png"]
    return np.asarray(Image.open(tmp_path / "grid.png"))


def places(picture: Pixels, image: Pixels, factor: int) -> list[tuple[int, int]]:
    """Every (y, x) at which ``image`` [c, h, w], each pixel a square of ``factor``, is found in the picture."""
    tile = np.kron(image.transpose(1, 2, 0), np.ones((factor, factor, 1), np.uint8))
    h, w = tile.shape[:2]
    corners = np.argwhere((picture[: len(picture) - h + 1, : picture.shape[1] - w + 1] == tile[0, 0]).all(-1))
    return [(int(y), int(x)) for y, x in corners if (picture[y : y + h, x : x + w] == tile).all()]


@pytest.mark.parametrize(("channels", "side", "factor"), [(1, 28, 2), (3, 32, 1), (3, 16, 3), (1, 64, 1)])
def test_every_image_is_in_its_place(tmp_path: Path, channels: int, side: int, factor: int) -> None:
    rows = [(f"row {seed}", samples(12, channels, side, seed)) for seed in range(3)]
    picture = render(rows, tmp_path)
    found = [[places(picture, image, factor) for image in images] for _, images in rows]
    assert all(len(place) == 1 for row in found for place in row)
    tops = [[place[0][0] for place in row] for row in found]
    lefts = [[place[0][1] for place in row] for row in found]
    step = side * factor + GAP
    assert all(len(set(row)) == 1 for row in tops)
    assert [row[0] for row in tops] == [tops[0][0] + i * step for i in range(3)]
    assert all(row == [lefts[0][0] + i * step for i in range(12)] for row in lefts)
    assert picture.shape[2] == 3
    assert side * factor <= max(TILE, side)


def test_labels_stand_left_of_their_rows_in_dark_type(tmp_path: Path) -> None:
    images = samples(2, 1, 28)
    picture = render([("timestep_aware\nW4A8", images), ("", images), ("fp", images)], tmp_path)
    (first, second, third), left = [y for y, _ in places(picture, images[0], 2)], places(picture, images[0], 2)[0][1]
    ink = picture[:, :left].max(-1) < 128
    assert ink[first : first + TILE].sum() > 200
    assert ink[third : third + TILE].sum() > 20
    assert not ink[second : second + TILE].any()
    assert not ink[:, left - 8 :].any()
    assert not ink[:, :8].any()
    assert ink.sum() == ink[first : first + TILE].sum() + ink[third : third + TILE].sum()


def test_ground_is_light_and_edges_are_free(tmp_path: Path) -> None:
    picture = render([("fp", np.zeros((16, 1, 28, 28), np.uint8))], tmp_path)
    assert min(PAPER) > 240
    for edge in (picture[0], picture[-1], picture[:, 0], picture[:, -1]):
        assert (edge == PAPER).all()


def test_tensors_give_the_same_file(tmp_path: Path) -> None:
    images = samples(12, 3, 32)
    sample_grid([("fp", images)], tmp_path / "array.png")
    sample_grid([("fp", torch.from_numpy(images))], tmp_path / "tensor.png")
    assert (tmp_path / "array.png").read_bytes() == (tmp_path / "tensor.png").read_bytes()


def test_an_old_picture_is_replaced_whole(tmp_path: Path) -> None:
    (tmp_path / "grid.png").write_bytes(b"old")
    assert render([("fp", samples(2, 1, 8))], tmp_path).ndim == 3


@pytest.mark.parametrize(
    "rows",
    [
        [],
        [("a", samples(3, 1, 8)), ("b", samples(4, 1, 8))],
        [("a", samples(3, 2, 8))],
        [("a", samples(3, 1, 8).astype(np.float32))],
        [("a", samples(3, 1, 8)[0])],
        [("a", samples(0, 1, 8))],
    ],
)
def test_other_shapes_are_refused(tmp_path: Path, rows: list[tuple[str, Pixels]]) -> None:
    with pytest.raises(ValueError, match=r"one shape|uint8"):
        sample_grid(rows, tmp_path / "grid.png")
    assert not any(tmp_path.iterdir())
