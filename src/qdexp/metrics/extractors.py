"""The feature extractors a protocol can name. Ours are registered with torch-fidelity, ``fashion-cnn`` is the embedded one; a
module of the user's own is named by its class (``qdexp.metrics.own``)."""

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load
from torch import Tensor, nn
from torch_fidelity.feature_extractor_base import FeatureExtractorBase
from torch_fidelity.feature_extractor_inceptionv3 import URL_INCEPTION_V3, FeatureExtractorInceptionV3
from torch_fidelity.registry import FEATURE_EXTRACTORS_REGISTRY, register_feature_extractor

from qdexp.config import NO_EXTRACTOR, Target
from qdexp.errors import UserError
from qdexp.metrics import own
from qdexp.metrics.extractor import Extractor
from qdexp.paths import ZOO
from qdexp.zoo.extractor import FashionCNN

SPATIAL = "spatial"


@dataclass(frozen=True)
class RegisteredExtractor(Extractor):
    """One that torch-fidelity knows by its name."""

    def build(self) -> FeatureExtractorBase:
        create = FEATURE_EXTRACTORS_REGISTRY[self.name]
        outputs = list(self.outputs.values())
        return create(self.name, outputs, feature_extractor_weights_path=io.BytesIO(self.checked_weights()))


class FashionExtractor(FeatureExtractorBase):
    """``FashionCNN`` under torch-fidelity's interface: uint8 images [n, 1, 28, 28] -> a tuple of the requested features."""

    def __init__(
        self,
        name: str,
        features_list: Sequence[str],
        feature_extractor_weights_path: io.BytesIO | str | None = None,
        **_: object,
    ) -> None:
        super().__init__(name, list(features_list))
        self.network = FashionCNN()
        self.network.load_state_dict(load(FASHION_CNN.opened(feature_extractor_weights_path).read()))
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The requested features, in the order they were requested in."""
        if images.dtype != torch.uint8 or images.shape[1:] != FASHION_CNN.shape:
            raise ValueError(f"expected uint8 images [n, 1, 28, 28], got {images.dtype} {list(images.shape)}")
        outputs = dict(zip(self.get_provided_features_list(), self.network(images), strict=True))
        return tuple(outputs[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The names that can be requested."""
        return tuple(FASHION_CNN.outputs.values())

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The layer that ``metric`` ("isc", "fid", "kid" or "prc") reads."""
        return FASHION_CNN.outputs["logits" if metric == "isc" else "pool"]


class InceptionExtractor(FeatureExtractorBase):
    """torch-fidelity's InceptionV3, with the spatial features of sFID: uint8 images [n, 3, h, w] -> the requested features.

    Spatial are the first 7 channels of the 1x1 branch of TensorFlow's block ``mixed_6`` (Nash et al. 2021, arXiv 2103.03841,
    appendix A; as in the ADM evaluation suite), 17 x 17 x 7 = 2,023 numbers, channels last.
    """

    CHANNELS = 7

    def __init__(
        self,
        name: str,
        features_list: Sequence[str],
        feature_extractor_weights_path: io.BytesIO | str | None = None,
        **_: object,
    ) -> None:
        super().__init__(name, list(features_list))
        others = [feature for feature in features_list if feature != SPATIAL]
        self.network = self._inception(others, feature_extractor_weights_path)
        self.network.Mixed_6d.branch1x1.register_forward_hook(self._keep)

    @staticmethod
    def _inception(features: list[str], weights: io.BytesIO | str | None) -> FeatureExtractorInceptionV3:
        return FeatureExtractorInceptionV3("inception-v3-compat", features, INCEPTION.opened(weights))

    def _keep(self, _: object, __: object, maps: Tensor) -> None:
        self.maps = maps[:, : self.CHANNELS]

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """The requested features, in the order they were requested in."""
        outputs = dict(zip(self.network.features_list, self.network(images), strict=True))
        outputs[SPATIAL] = self.maps.permute(0, 2, 3, 1).flatten(1)
        return tuple(outputs[name] for name in self.features_list)

    @staticmethod
    def get_provided_features_list() -> tuple[str, ...]:
        """The names that can be requested."""
        return (*FeatureExtractorInceptionV3.get_provided_features_list(), SPATIAL)

    @staticmethod
    def get_default_feature_layer_for_metric(metric: str) -> str:
        """The layer that ``metric`` ("isc", "fid", "kid" or "prc") reads."""
        name: str = FeatureExtractorInceptionV3.get_default_feature_layer_for_metric(metric)
        return name


class _Untrained(FeatureExtractorInceptionV3):
    """An extractor with seeded random weights, of a size that lets features neither vanish nor grow from layer to layer."""

    def load_state_dict(self, *_: Any, **__: Any) -> None:
        """Replace the loading of weights that the constructor ends with."""
        generator = torch.Generator().manual_seed(0)
        for layer in self.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu", generator=generator)
        nn.init.zeros_(self.fc.bias)


class RandomInceptionExtractor(InceptionExtractor):
    """The network and the work of ``InceptionExtractor`` with random weights, for images with any channels; its scores mean
    nothing."""

    def forward(self, images: Tensor) -> tuple[Tensor, ...]:
        """Extract features of images; other than three channels are repeated, or some left out."""
        channels = images.shape[1]
        return super().forward(images[:, [channel % channels for channel in range(3)]])

    @staticmethod
    def _inception(features: list[str], _: io.BytesIO | str | None) -> FeatureExtractorInceptionV3:
        no_weights = io.BytesIO()
        torch.save({}, no_weights)
        no_weights.seek(0)
        return _Untrained("inception-v3-compat", features, no_weights)


FASHION_CNN = RegisteredExtractor(
    name="fashion-cnn",
    pool="64",
    logits="logits",
    shape=(1, 28, 28),
    weights=ZOO / "fashion_cnn" / "model.safetensors",
    digest="e29007c860f1cc60fccb39c06f5dccde852629c4aece4e49ac34486f6444c5fe",
)
INCEPTION = RegisteredExtractor(
    name="inception-v3",
    pool="2048",
    logits="logits_unbiased",
    spatial=SPATIAL,
    publisher=URL_INCEPTION_V3,
    shape=(3,),
    # where torch-fidelity keeps them
    weights=Path(torch.hub.get_dir()) / "checkpoints" / "weights-inception-2015-12-05-6726825d.pth",
    digest="6726825d0af5f729cebd5821db510b11b1cfad8faad88a03f1befd49fb9129b2",
)
RANDOM_INCEPTION = replace(INCEPTION, name="inception-v3-random", shape=(), digest="seed-0", random=True)
EXTRACTORS = {extractor.name: extractor for extractor in (FASHION_CNN, INCEPTION, RANDOM_INCEPTION)}

register_feature_extractor(FASHION_CNN.name, FashionExtractor)
register_feature_extractor(INCEPTION.name, InceptionExtractor)
register_feature_extractor(RANDOM_INCEPTION.name, RandomInceptionExtractor)


def find(name: str | Target, weights: str | None = None) -> Extractor:
    """The extractor called ``name``, or made by it, its weights at the path ``weights`` if it is given.

    Raises UserError where there is none, or it cannot be made.
    """
    if not isinstance(name, str):
        return own.made(name, weights)
    if name not in EXTRACTORS:
        raise UserError(f"protocol.extractor={name} is unknown; choose one of {', '.join(EXTRACTORS)}, {NO_EXTRACTOR}, or "
                        f"a module of yours: '{{_target_: mine.Features, size: 32}}'")  # fmt: skip
    return EXTRACTORS[name] if weights is None else replace(EXTRACTORS[name], weights=Path(weights))
