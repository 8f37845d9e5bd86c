"""Samples of several methods side by side: a row a method, a column a starting noise.

Every cell of a sweep draws sample i from the same noise, so what differs down a column is the work of the quantizer alone.
"""

from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from qdexp import files

PAPER, INK = (250, 250, 248), (40, 40, 40)
TILE = 56
"""Height in pixels that small images are enlarged towards, by a whole factor so that their pixels stay crisp."""
GAP, MARGIN, TYPE = 4, 12, 14
"""Pixels between images, around the picture, and of the labels' type."""


def sample_grid(rows: Sequence[tuple[str, Any]], path: Path) -> None:
    """Writes a PNG with one labelled row a method, which appears whole or not at all.

    ``rows``: label (may hold newlines) and images, uint8 [k, c, h, w] with c = 1 or 3, as an array or a CPU tensor; all rows
    of one shape. Raises ValueError on anything else.
    """
    labels, images = [label for label, _ in rows], [_checked(samples) for _, samples in rows]
    if len({samples.shape for samples in images}) != 1:
        raise ValueError(f"a grid needs rows of one shape, not {[samples.shape for samples in images]}")
    tiles = [_enlarged(samples) for samples in images]
    count, height, width, _ = tiles[0].shape
    font = ImageFont.load_default(TYPE)
    texts = max(int(font.getlength(line)) + 1 for label in labels for line in label.split("\n"))
    left = MARGIN + texts + MARGIN
    size = (left + count * (width + GAP) - GAP + MARGIN, 2 * MARGIN + len(tiles) * (height + GAP) - GAP)
    picture = Image.new("RGB", size, PAPER)
    draw = ImageDraw.Draw(picture)
    for row, (label, samples) in enumerate(zip(labels, tiles, strict=True)):
        top = MARGIN + row * (height + GAP)
        draw.multiline_text((MARGIN, top + height // 2), label, fill=INK, font=font, anchor="lm", spacing=3)
        for column, tile in enumerate(samples):
            picture.paste(Image.fromarray(tile), (left + column * (width + GAP), top))
    files.write(path, partial(picture.save, format="PNG"))


def _checked(samples: Any) -> NDArray[np.uint8]:
    images: NDArray[np.uint8] = np.asarray(samples)
    if images.dtype != np.uint8 or images.ndim != 4 or images.shape[1] not in (1, 3) or not images.size:
        raise ValueError(f"samples must be uint8 [k, 1 or 3, h, w], not {images.dtype} {list(images.shape)}")
    return images


def _enlarged(samples: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """[k, c, h, w] as RGB [k, h', w', 3], every pixel a square."""
    factor = max(1, TILE // samples.shape[2])
    rgb = np.broadcast_to(samples, (len(samples), 3, *samples.shape[2:])).transpose(0, 2, 3, 1)
    return np.ascontiguousarray(rgb.repeat(factor, axis=1).repeat(factor, axis=2))
