"""Features of the images of a cell, for all metrics that read those of one extractor."""

from dataclasses import dataclass, field
from pathlib import Path

from qdexp import files
from qdexp.config import NAMES_CODE
from qdexp.metrics.extractor import Extractor
from qdexp.metrics.features import extract
from qdexp.sampling.shards import Images
from qdexp.stages.base import Stage
from qdexp.stages.samples import SamplesStage


@dataclass(frozen=True, eq=False, kw_only=True)
class FeaturesStage(Stage):
    """``features.safetensors``: see ``qdexp.metrics.features.Features``.

    ``kind``: the class of the extractor, which counts with its code.
    """

    name = "features"
    quick = True

    samples: SamplesStage
    extractor: Extractor
    kind: str = field(metadata=NAMES_CODE)
    library: str

    @classmethod
    def of(cls, samples: SamplesStage, extractor: Extractor) -> "FeaturesStage":
        kind = type(extractor)
        return cls(
            device=samples.device,
            samples=samples,
            extractor=extractor,
            kind=f"{kind.__module__}.{kind.__qualname__}",
            library=extractor.library,
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        found = extract(self.extractor, Images(inputs["samples"]), self.extractor.batch, self.device)
        tensors = {name: value for name, value in vars(found).items() if value is not None}
        files.write_tensors(folder / "features.safetensors", tensors)
