"""A feature extractor of your own: any module, and the size at which it looks at images.

    protocol.extractor='{_target_: mine.Features, size: 32, width: 64}'

``mine.Features(width=64)`` is called with float32 RGB images in [0, 1], [n, 3, 32, 32], and returns their features, [n, d]. It
is built under a fixed seed. ``protocol.extractor_weights`` names a file with its state dict, if it does not fill itself.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from hydra.utils import instantiate
from safetensors.torch import load_file
from torch import Tensor, nn

from qdexp import code, entries
from qdexp.config import Target
from qdexp.errors import UserError
from qdexp.metrics.extractor import Extractor
from qdexp.targets import TARGET

OPTION, SIZE = "protocol.extractor", "size"
_NOWHERE = Path()
"""The word in place of a file of weights: the module fills itself."""


@dataclass(frozen=True, kw_only=True)
class OwnExtractor(Extractor):
    """``target`` makes the module, whose code is a part of ``digest`` with its parameters and options; ``size``: pixels of a
    side. Images have one channel, which is repeated, or three."""

    batch: int = 64
    size: int
    target: Target = field(hash=False)

    @property
    def option(self) -> str:
        return f"{OPTION}={self.name}"

    @property
    def library(self) -> str:
        """The library that resizes the images."""
        return f"torch {version('torch')}"

    def takes(self, shape: Sequence[int]) -> bool:
        return shape[0] in (1, 3)

    def check(self) -> None:
        """Nothing: it was built to learn its digest."""

    def build(self) -> nn.Module:
        return _Resized(_module(self.target, self.weights), self.size).eval().requires_grad_(False)


class _Resized(nn.Module):
    """uint8 images [n, 1 or 3, h, w] -> a tuple of the features [n, d] that ``module`` finds at ``size``."""

    def __init__(self, module: nn.Module, size: int) -> None:
        super().__init__()
        self.module, self.size = module, size

    def forward(self, images: Tensor) -> tuple[Tensor]:
        pixels = images.float().expand(-1, 3, -1, -1) / 255
        if pixels.shape[2:] != (self.size, self.size):
            pixels = F.interpolate(pixels, (self.size, self.size), mode="bilinear", antialias=True)
        return (self.module(pixels),)


def made(target: Target, weights: str | None) -> OwnExtractor:
    """The extractor that ``protocol.extractor`` describes.

    Raises:
        UserError: One line with the option: the module cannot be made or filled, or gives no features.
    """
    path = _NOWHERE if weights is None else Path(weights)
    if weights is not None and not path.is_file():
        raise UserError(f"{OPTION}_weights={weights}: no such file; name one that holds the module's state dict")
    size = target.get(SIZE)
    if TARGET not in target:
        raise UserError(f"{OPTION}={dict(target)}: name a class of torch.nn.Module as {TARGET}")
    if type(size) is not int or size < 1:
        raise UserError(f"{OPTION}.{SIZE}={size}: give the pixels of a side at which the module looks at images")
    plain = json.dumps(target, sort_keys=True)
    return _made(plain, path, entries.digest(path) if weights is not None else "")


@lru_cache(maxsize=4)
def _made(plain: str, weights: Path, _: str) -> OwnExtractor:
    """Built once, as long as the content of its weights, whose digest is the last, is the same."""
    target = json.loads(plain)
    module, size = _module(target, weights), target[SIZE]
    with torch.inference_mode():
        try:
            (features,) = _Resized(module.eval(), size)(torch.zeros(2, 3, size, size, dtype=torch.uint8))
            fault = _fault(features)
        except Exception as error:  # whatever the user's module does
            raise UserError(f"{OPTION}={target[TARGET]}: fails on RGB images [2, 3, {size}, {size}] "
                            f"({' '.join(str(error).split())})") from error  # fmt: skip
    if fault:
        raise UserError(f"{OPTION}={target[TARGET]}: returns {fault}; of images [n, 3, {size}, {size}] it has to return "
                        f"features, float32 [n, d]")  # fmt: skip
    sha = hashlib.sha256(f"{plain} {code.digest(type(module).__module__)}".encode())
    for name, value in sorted(module.state_dict().items()):
        sha.update(f"{name} {value.dtype} {list(value.shape)}\n".encode())
        sha.update(value.contiguous().cpu().view(-1).view(torch.uint8).numpy().tobytes())
    return OwnExtractor(
        name=target[TARGET], pool="features", shape=(3,), weights=weights, digest=sha.hexdigest(), size=size, target=target
    )


def _fault(features: Any) -> str | None:
    """The fault in the features of two images; None where there is none."""
    if not isinstance(features, Tensor):
        return f"a {type(features).__name__}"
    if features.ndim != 2 or len(features) != 2 or features.dtype != torch.float32:
        return f"{str(features.dtype).removeprefix('torch.')} {list(features.shape)} of 2 images"
    return None if features.isfinite().all() else "numbers that are not finite"


def _module(target: Mapping[str, Any], weights: Path) -> nn.Module:
    name, options = target[TARGET], {key: value for key, value in target.items() if key != SIZE}
    try:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            module = instantiate(options, _convert_="all")
    except Exception as error:  # whatever the user's module does
        raise UserError(f"{OPTION}={name}: cannot be made ({' '.join(str(error).split())}); check its options, the name and "
                        f"PYTHONPATH") from error  # fmt: skip
    if not isinstance(module, nn.Module):
        raise UserError(f"{OPTION}={name}: makes a {type(module).__name__}; name a class of torch.nn.Module")
    if weights != _NOWHERE:
        try:
            found = load_file(weights) if weights.suffix == ".safetensors" else torch.load(weights, "cpu", weights_only=True)
            module.load_state_dict(found)
        except Exception as error:  # of a corrupt file any
            raise UserError(f"{OPTION}_weights={weights}: does not fill {name} ({' '.join(str(error).split())}); name a file "
                            f"of its state dict") from error  # fmt: skip
    return module
