"""Image files as a person means them: which files of a folder are images, and what their pixels are in 8-bit RGB.

What an image cannot be without a guess (transparency, several frames, a floating-point scale) is refused, not guessed.
"""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path

import numpy as np
from PIL import ExifTags, Image, ImageOps

from qdexp.errors import UserError

_NOT_READ = {"BUFR", "EPS", "GRIB", "HDF5", "MPEG", "WMF"}
"""The formats that Pillow only identifies, or gives to another program to draw."""


@cache
def formats() -> frozenset[str]:
    """The formats that are read, by Pillow's names."""
    Image.init()
    return frozenset(Image.OPEN) - _NOT_READ


@cache
def endings() -> frozenset[str]:
    """The endings of image files' names: ``.png`` and so on, in lower case."""
    Image.init()
    return frozenset({ending for ending, name in Image.registered_extensions().items() if name in formats()} | {".mpo"})


@dataclass
class Listing:
    """The images under a folder, sorted by path, and how many files of which kind were ``left_out``."""

    paths: list[Path] = field(default_factory=list)
    left_out: Counter[str] = field(default_factory=Counter)


def listing(folder: Path) -> Listing:
    """All images under ``folder``. Links to folders are followed; a file that is reached twice counts once.

    Hidden files and folders are left out (``.ipynb_checkpoints`` holds copies, ``._1.jpg`` is no image), as are files whose
    ending is none of an image. Raises UserError where a folder cannot be read.
    """
    found, seen = Listing(), set[str]()
    for path, real in sorted(_files(folder, found.left_out)):
        ending = path.suffix.lower()
        if ending not in endings():
            found.left_out[ending or "without an ending"] += 1
        elif real in seen:
            found.left_out["reached twice"] += 1
        else:
            seen.add(real)
            found.paths.append(path)
    return found


def _files(folder: Path, left_out: Counter[str]) -> Iterator[tuple[Path, str]]:
    """Every file under ``folder`` that is not hidden, and where it really lies; each real folder is entered once."""
    waiting, entered = [folder], set[str]()
    while waiting:
        here = waiting.pop()
        real = os.path.realpath(here)
        if real in entered:
            left_out["folders reached twice"] += 1
            continue
        entered.add(real)
        try:
            entries = sorted(os.scandir(here), key=lambda entry: entry.name, reverse=True)  # the last one is taken first
        except OSError as error:
            raise UserError(f"{here}: cannot be read ({error.strerror}); make it readable, or move it away") from error
        for entry in entries:
            if entry.name.startswith("."):
                left_out["hidden"] += 1
            elif entry.is_dir():
                waiting.append(here / entry.name)
            elif not entry.is_file() and not entry.is_symlink():  # a pipe would be waited for; a dangling link shall be told
                left_out["no files"] += 1
            else:
                lies = os.path.realpath(entry.path) if entry.is_symlink() else os.path.join(real, entry.name)
                yield here / entry.name, lies


def read(path: Path) -> tuple[Image.Image, str]:
    """The image in 8-bit RGB, upright, and what its file is: "PNG I;16".

    16 bits a channel become the upper 8, as Pillow reads 16-bit colour. Raises UserError where the file is no whole image, or
    one that 8-bit RGB cannot show without a guess.
    """
    try:
        with Image.open(path, formats=sorted(formats())) as file:
            kind = f"{file.format} {file.mode}"
            frames = getattr(file, "n_frames", 1)
            if frames > 1 and file.format != "MPO":  # whose further images are previews of the first
                raise UserError(f"{path}: has {frames} frames; save the one that is meant as an image of its own")
            turned = _upright(file)
            return _rgb(path, turned, kind), kind if turned is file else f"{kind} turned by EXIF"
    except UserError:
        raise
    except Exception as error:  # decoders raise whatever they like
        raise _unreadable(path, error) from error


def size(path: Path) -> tuple[int, int]:
    """Width and height, as the head of the file says. Raises UserError where it is no image."""
    try:
        with Image.open(path, formats=sorted(formats())) as file:
            return file.size
    except Exception as error:
        raise _unreadable(path, error) from error


def _unreadable(path: Path, error: Exception) -> UserError:
    return UserError(f"{path}: cannot be read as an image ({' '.join(str(error).split())}); remove or fix it")


def _upright(file: Image.Image) -> Image.Image:
    """Turn an image as its EXIF orientation says; ``file`` itself where that says nothing, or cannot be read."""
    try:
        orientation = file.getexif().get(ExifTags.Base.Orientation, 1)
    except Exception:  # viewers show such an image as it is
        return file
    return ImageOps.exif_transpose(file) if orientation in range(2, 9) else file


def _rgb(path: Path, image: Image.Image, kind: str) -> Image.Image:
    if image.has_transparency_data:
        if image.mode.startswith("I") or image.convert("RGBA").getchannel("A").getextrema() != (255, 255):
            raise UserError(f"{path}: has transparent pixels, and nothing says what lies behind them; save it without")
        return image.convert("RGBA").convert("RGB")
    if image.mode.startswith("I;16") or kind == "PPM I":
        return Image.fromarray((np.asarray(image).astype(np.uint16) >> 8).astype(np.uint8)).convert("RGB")
    if image.mode in ("I", "F"):
        raise UserError(f"{path}: has 32 bits a pixel ({kind}), and nothing says what is white; save it with 8 or 16")
    return image.convert("RGB")
