"""FD-DINOv2: the Fréchet distance between the Gaussians of DINOv2's features (Stein et al. 2023, arXiv 2306.04675).

Where FID looks with a classifier's eyes, this looks with those of a network that was trained without labels, which people's
judgement of generated images follows more closely. In float64, with a jackknife interval (``qdexp.statistics.frechet``). Like
FID it is biased upwards, more so the smaller n is: of fewer images than the 1,024 features it says little.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from importlib.metadata import version
from pathlib import Path
from typing import ClassVar

from qdexp.config import RANDOM, WITHOUT_EFFECT, Config
from qdexp.entries import digest
from qdexp.errors import UserError
from qdexp.metrics.base import Material, Metric, Result, image_shape
from qdexp.metrics.dinov2 import DINOV2, RANDOM_DINOV2, DinoV2
from qdexp.metrics.fid import floor
from qdexp.metrics.reference import Reference
from qdexp.numbers import Number
from qdexp.statistics.frechet import Frechet

OPTION = "metric.fd_dinov2.reference"


@dataclass(frozen=True, kw_only=True)
class FdDinov2(Metric):
    """FD-DINOv2 by ViT-L/14, against ``reference``, a file that ``python -m qdexp.metrics.build --extractor dinov2-vit-l-14``
    makes.

    ``weights``: the published file; null: where torch.hub keeps it; ``random``: seeded random ones, to rehearse, with which
    ``reference`` may be ``random`` too. ``digest``: the SHA-256 of another file than the published one.
    """

    numbers: ClassVar[tuple[Number, ...]] = (
        Number(
            "fd_dinov2",
            "FD-DINOv2",
            shown=("overview", "brief", "bars"),
            differences=True,
            meaning="Fréchet distance between DINOv2's features of samples and of real images.",
        ),
        Number(
            "fd_dinov2_floor",
            "floor FD-DINOv2",
            kind="floor",
            shown=(),
            meaning="FD-DINOv2 of held-out real images: no difference below it means anything.",
        ),
    )
    needs: ClassVar[frozenset[str]] = frozenset()  # but the features

    weights: str | None = field(default=None, metadata=WITHOUT_EFFECT)  # what is in the files counts
    digest: str | None = field(default=None, metadata=WITHOUT_EFFECT)
    reference: str | None = field(default=None, metadata=WITHOUT_EFFECT)

    def measure(self, material: Material) -> Mapping[str, Result]:
        pool, path = material.features().pool, material.files.get("reference")
        reference = Reference.load(path, OPTION) if path else Reference.standard_normal(RANDOM_DINOV2, pool.shape[1])
        found: dict[str, Result] = {"fd_dinov2": Frechet(reference.mu.numpy(), reference.sigma.numpy()).fid(pool.numpy())}
        lowest = floor(reference, len(pool))
        return found | ({} if lowest is None else {"fd_dinov2_floor": lowest})

    def extractor(self, config: Config) -> DinoV2:
        if self.weights == RANDOM:
            return RANDOM_DINOV2
        named = DINOV2 if self.weights is None else replace(DINOV2, weights=Path(self.weights))
        return named if self.digest is None else replace(named, digest=self.digest)

    def files(self, config: Config) -> dict[str, Path]:
        if self.reference == RANDOM and self.weights == RANDOM:
            return {}
        path = Path(self.reference or "")
        if not self.reference or not path.is_file():
            raise UserError(f"{OPTION}={self.reference or ''}: no such file; make one of real images: python -m "
                            f"qdexp.metrics.build IMAGES --extractor {self.extractor(config).name} --out FILE")  # fmt: skip
        return {"reference": path}

    def check(self, config: Config) -> None:
        extractor, shape = self.extractor(config), image_shape(config.model)
        extractor.check()
        if path := self.files(config).get("reference"):
            Reference.load(path, OPTION).check(extractor, OPTION)
        if not extractor.takes(shape):
            raise UserError(
                f"metric.fd_dinov2: takes grey or RGB images, {config.model.name} makes {list(shape)}; leave it out"
            )

    def identity(self, config: Config) -> dict[str, str]:
        extractor, reference = self.extractor(config), self.files(config).get("reference")
        return {
            "extractor": extractor.name,
            "weights": RANDOM if extractor.random else extractor.digest,
            "reference": digest(reference) if reference else RANDOM,
            "library": f"torch-fidelity {version('torch-fidelity')}",
        }
