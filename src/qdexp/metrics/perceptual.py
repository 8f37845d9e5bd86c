"""LPIPS: the learned distance of images to the full-precision ones of the same noise, image by image.

Zhang et al., CVPR 2018 (arXiv 1801.03924), version 0.1, computed by the package ``lpips``, which brings the learned weights of
the channels. Those of the backbone are the user's: AlexNet or VGG-16 on ImageNet, under the names that torchvision gives them.
"""

import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

import torch
from torch import Tensor, nn

from qdexp.config import WITHOUT_EFFECT, Config
from qdexp.entries import digest
from qdexp.errors import UserError
from qdexp.metrics.base import FULL_PRECISION, SAMPLES, Material, Metric, image_shape
from qdexp.models.weights import WeightFiles
from qdexp.numbers import Number

PIECE = 32
"""Images of one forward pass: fixed, since it may change a distance's last bit."""


@dataclass(frozen=True, kw_only=True)
class Lpips(Metric):
    """LPIPS with the backbone's ``weights``, torchvision's of AlexNet or VGG-16, a file; null: it is not measured."""

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "lpips",
            "LPIPS to FP",
            kind="fidelity",
            shown=("overview", "alone"),
            digits=3,
            meaning="Learned perceptual distance to the full-precision image of the same noise.",
        ),
    )
    needs: ClassVar[frozenset[str]] = frozenset({SAMPLES, FULL_PRECISION})

    weights: str | None = field(default=None, metadata=WITHOUT_EFFECT)  # what is in the file counts

    def measure(self, material: Material) -> dict[str, Tensor]:
        file = material.files["weights"]
        opened, backbone = WeightFiles([file], _option(file)), _backbone(file, digest(file))
        read = opened.read(weight_shapes(backbone))
        network = Perceptual(backbone, {name: value.clone() for some in read for name, value in some.items()}, material.device)
        return {"lpips": torch.cat([network.distance(images, truth) for images, truth in material.pairs()])}

    def applies(self, config: Config) -> bool:
        return bool(self.weights)

    def files(self, config: Config) -> dict[str, Path]:
        file = Path(str(self.weights))
        if not file.is_file():
            raise UserError(f"{_option(file)}: no such file; name torchvision's weights of AlexNet or VGG-16, or leave it null")
        return {"weights": file}

    def check(self, config: Config) -> None:
        file = self.files(config)["weights"]
        _backbone(file, digest(file)).check(image_shape(config.model))

    def identity(self, config: Config) -> dict[str, str]:
        file = self.files(config)["weights"]
        found = digest(file)
        return {"backbone": _backbone(file, found).title, "weights": found, "library": f"lpips {version('lpips')}"}


def _option(file: Path) -> str:
    return f"inspection.lpips={file}"


@cache
def _backbone(file: Path, _: str) -> "Backbone":
    """The backbone whose weights the file holds; once for each content. Raises UserError where it is none."""
    found = backbone_of(WeightFiles([file], _option(file)).shapes)
    if found is None:
        known = " or ".join(known.title for known in BACKBONES)
        raise UserError(f"{_option(file)}: not the weights of {known} under torchvision's names; name a file that holds them")
    return found


@dataclass(frozen=True)
class Backbone:
    """``name`` is that of ``lpips``; ``least``: pixels of the smallest image that its pooling leaves something of."""

    name: str
    title: str
    least: int

    def takes(self, shape: Sequence[int]) -> bool:
        """Whether images of ``shape`` [c, h, w] can be measured, or of [c] where their size is not known yet."""
        channels, *size = shape
        return channels in (1, 3) and all(pixels >= self.least for pixels in size)

    def check(self, shape: Sequence[int]) -> None:
        """UserError unless it takes images of ``shape``."""
        if not self.takes(shape):
            fixes = [*(f"name weights of {other.title}" for other in BACKBONES if other.takes(shape)), "leave it null"]
            raise UserError(f"inspection.lpips: with {self.title} it takes grey or RGB images of {self.least} pixels or more, "
                            f"not {list(shape)}; {' or '.join(fixes)}")  # fmt: skip


BACKBONES = (Backbone("alex", "AlexNet", 31), Backbone("vgg", "VGG-16", 16))


def weight_shapes(backbone: Backbone) -> dict[str, tuple[int, ...]]:
    """The published names and the shapes of the weights that ``Perceptual`` reads."""
    with torch.device("meta"):
        trunk = _network(backbone).get_submodule("net")
    return {_published(name): tuple(value.shape) for name, value in trunk.state_dict().items()}


def backbone_of(shapes: Mapping[str, tuple[int, ...]]) -> Backbone | None:
    """The backbone whose weights have these names and ``shapes``, the classifier aside; None if there is none."""
    fitting = (backbone for backbone in BACKBONES if weight_shapes(backbone).items() <= shapes.items())
    return next(fitting, None)


class Perceptual:
    """LPIPS with the backbone's ``weights``, by their published names."""

    def __init__(self, backbone: Backbone, weights: Mapping[str, Tensor], device: torch.device) -> None:
        self.backbone, self.device = backbone, device
        network = _network(backbone)
        trunk = network.get_submodule("net")
        trunk.load_state_dict({name: weights[_published(name)] for name in trunk.state_dict()})
        self.network = network.to(device)

    @torch.inference_mode()
    def distance(self, a: Tensor, b: Tensor) -> Tensor:
        """LPIPS [n] (float32, on the CPU) of uint8 images ``a`` and ``b`` [n, c, h, w]; grey ones are repeated to RGB."""
        self.backbone.check(a.shape[1:])
        pieces = zip(a.split(PIECE), b.split(PIECE), strict=True)
        return torch.cat([self.network(self._input(x), self._input(y)).flatten().cpu() for x, y in pieces])

    def _input(self, images: Tensor) -> Tensor:
        return (images.to(self.device).float() / 127.5 - 1).expand(-1, 3, -1, -1)


def _network(backbone: Backbone) -> nn.Module:
    """The LPIPS network of the package: the backbone random, the weights of its channels learned."""
    import lpips  # takes seconds, and only few ask for it

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)  # it calls torchvision in the old way
        network: nn.Module = lpips.LPIPS(net=backbone.name, pnet_rand=True, verbose=False)
    return network


def _published(name: str) -> str:
    """torchvision's ``features.3.weight`` of the package's ``slice2.3.weight``."""
    return f"features.{name.partition('.')[2]}"
