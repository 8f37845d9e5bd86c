"""From image files to the images of a reference: crop and resize, by names that stand for one exact procedure.

Another crop or filter moves FID by more than quantization does, so a reference says in its name how its images were prepared.
"""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset

from qdexp.errors import UserError

ENDINGS = {".png", ".jpg", ".jpeg", ".webp", ".bmp"}
FORMATS = ("PNG", "JPEG", "WEBP", "BMP")
"""What such a file may hold: the library would hand others, whatever they are called, to programs such as Ghostscript."""


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
    """As latent diffusion reads LSUN: the square in the middle, then bicubic to ``size``."""
    return _square(image).resize((size, size), Image.Resampling.BICUBIC)


def adm(image: Image.Image, size: int) -> Image.Image:
    """As ADM reads images: halved by means of 2x2 pixels while twice too large, then bicubic to the shorter side, then the
    square in the middle."""
    while min(image.size) >= 2 * size:
        image = image.resize((image.width // 2, image.height // 2), Image.Resampling.BOX)
    scale = size / min(image.size)
    return _square(image.resize((round(image.width * scale), round(image.height * scale)), Image.Resampling.BICUBIC))


PREPARATIONS: dict[str, Callable[[Image.Image, int], Image.Image]] = {"none": none, "ldm": ldm, "adm": adm}


class ImageFolder(Dataset[tuple[Tensor]]):
    """All images under ``folder``, as an LSUN export or a flat folder holds them, sorted by path: uint8 [3, size, size].

    Raises UserError where there is none, or a file is no image.
    """

    def __init__(self, folder: Path, prepare: str, size: int) -> None:
        self.paths = sorted(path for path in folder.rglob("*") if path.suffix.lower() in ENDINGS)
        self.prepare, self.size = PREPARATIONS[prepare], size
        if not self.paths:
            raise UserError(f"{folder}: holds no image ({', '.join(sorted(ENDINGS))}); name a folder of images")

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, index: int) -> tuple[Tensor]:
        try:
            with Image.open(self.paths[index], formats=FORMATS) as file:
                image = file.convert("RGB")
        except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
            raise UserError(f"{self.paths[index]}: cannot be read as an image ({error}); remove or mend it") from error
        return (torch.from_numpy(np.array(self.prepare(image, self.size))).permute(2, 0, 1),)


class Registered(Dataset[tuple[Tensor]]):
    """One of torch-fidelity's registered inputs, such as ``cifar10-train``, whose entries are images alone."""

    def __init__(self, images: Dataset[Tensor]) -> None:
        self.images = images

    def __len__(self) -> int:
        return len(self.images)  # type: ignore[arg-type]

    def __getitem__(self, index: int) -> tuple[Tensor]:
        return (self.images[index],)
