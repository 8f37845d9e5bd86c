"""Preparation of image files for a reference: crop and resize, by names that stand for one exact procedure each.

Another crop or filter moves FID by more than quantization does, so a reference says in its name how its images were prepared.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from qdexp.errors import UserError
from qdexp.metrics import images


def _square(image: Image.Image) -> Image.Image:
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    return image.crop((left, top, left + side, top + side))


def none(image: Image.Image, size: int) -> Image.Image:
    """The image as it is, which must be ``size`` x ``size``."""
    if image.size != (size, size):
        raise UserError(f"--prepare none: an image is {image.width}x{image.height}, not {size}x{size}; choose another")
    return image


def ldm(image: Image.Image, size: int) -> Image.Image:
    """Crop as latent diffusion reads LSUN: the square in the middle, then bicubic to ``size``."""
    return _square(image).resize((size, size), Image.Resampling.BICUBIC)


def adm(image: Image.Image, size: int) -> Image.Image:
    """Crop as ADM reads images: halved by means of 2x2 pixels while twice too large, then bicubic to the shorter side, then the
    square in the middle."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    return _square(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC))


PREPARATIONS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"none": none, "ldm": ldm, "adm": adm}


def common_side(folder: Path) -> int:
    """The pixels of each side of all images under ``folder``. Raises UserError where they differ, or there is none."""
    paths = images.listing(folder).paths
    sizes = {images.size(path): path for path in reversed(paths)}
    odd = next((size for size in sizes if size[0] != size[1]), None)
    if len(sizes) > 1 or odd:
        told = ", ".join(f"{path.name} {width}x{height}" for (width, height), path in [*sizes.items()][::-1][:2])
        raise UserError(f"--size is missing: not all images are squares of one size ({told}); name the pixels of a side, "
                        f"as the model draws them, and by --prepare how images get there")  # fmt: skip
    return sizes.popitem()[0][0] if sizes else 1  # of none: said by who reads them


class ImageFolder(Dataset[Tensor]):
    """All images under ``folder``, as an LSUN export or a flat folder holds them, sorted by path: uint8 [3, size, size].

    Raises UserError where there is none, or a file is no image.
    """

    def __init__(self, folder: Path, prepare: str, size: int) -> None:
        found = images.listing(folder)
        self.paths, self.left_out = found.paths, found.left_out
        self.prepare, self.size = PREPARATIONS[prepare], size
        self._kinds: dict[int, str] = {}
        if not self.paths:
            instead = f"; left out: {_counted(self.left_out)}" if self.left_out else ""
            raise UserError(f"{folder}: holds no image (.png, .jpg, .webp, .tif ...{instead}); name a folder of images")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> Tensor:
        image, self._kinds[index] = images.read(self.paths[index])
        return torch.from_numpy(np.array(self.prepare(image, self.size))).permute(2, 0, 1)

    @property
    def account(self) -> str:
        """The counts of images read so far by format and mode, and of what was left out and why."""
        left_out = f"; left out: {_counted(self.left_out)}" if self.left_out else ""
        return f"{_counted(Counter(self._kinds.values()))}{left_out}"


def _counted(kinds: Counter[str]) -> str:
    return ", ".join(f"{count:,} {kind}" for kind, count in kinds.most_common())
