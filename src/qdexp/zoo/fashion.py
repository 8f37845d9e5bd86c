"""Fashion-MNIST, the data of the embedded model (Xiao et al., arXiv 1708.07747; MIT licence).

Needed for training only. Debian ships it as the package ``dataset-fashion-mnist``.
"""

import gzip
import struct
from pathlib import Path

import torch
from torch import Tensor

DEBIAN_FOLDER = Path("/usr/share/datasets/fashion-mnist")
_FILES = {"train": "train", "test": "t10k"}


def _read_idx(path: Path) -> Tensor:
    """Reads one gzipped IDX file of unsigned bytes (big-endian header: magic, then one size a dimension)."""
    raw = gzip.decompress(path.read_bytes())
    zero, kind, dims = struct.unpack(">HBB", raw[:4])
    if zero != 0 or kind != 0x08:
        raise ValueError(f"{path} is not an IDX file of unsigned bytes")
    shape = struct.unpack(f">{dims}I", raw[4 : 4 + 4 * dims])
    return torch.frombuffer(bytearray(raw[4 + 4 * dims :]), dtype=torch.uint8).reshape(shape)


def load(split: str, folder: Path = DEBIAN_FOLDER) -> tuple[Tensor, Tensor]:
    """Images uint8 [n, 1, 28, 28] and labels int64 [n] of ``split`` ("train": 60,000, "test": 10,000)."""
    stem = _FILES[split]
    images = _read_idx(folder / f"{stem}-images-idx3-ubyte.gz").unsqueeze(1)
    labels = _read_idx(folder / f"{stem}-labels-idx1-ubyte.gz").long()
    return images, labels


def to_model_range(images: Tensor) -> Tensor:
    """uint8 images in [0, 255] as float32 in [-1, 1], the range a DDPM is trained on."""
    return images.float() / 127.5 - 1.0
