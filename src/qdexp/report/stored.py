"""Reading the images of a samples entry without the machinery that wrote them."""

from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from safetensors.numpy import load_file


def first_images(folder: Path, count: int) -> NDArray[np.uint8] | None:
    """The first ``count`` images of a samples entry, uint8 [count, c, h, w]; None where there is no shard."""
    found: list[NDArray[np.uint8]] = []
    for shard in sorted(folder.glob("shard-*.safetensors")):
        found.append(load_file(shard)["images"])
        if sum(map(len, found)) >= count:
            break
    return np.concatenate(found)[:count] if found else None
