"""The quantized network as somebody released it: all of it is taken from a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from qdexp import device as devices
from qdexp.config import Config, Model, Quant, Sampling
from qdexp.errors import UserError
from qdexp.models import released
from qdexp.models.conditions import example_row
from qdexp.quant.network import LayerBits, quantized_layers
from qdexp.stages.base import Stage
from qdexp.stages.conversion import keep


@dataclass(frozen=True, eq=False, kw_only=True)
class ReleasedStage(Stage):
    """``checkpoint/``: what ``qdexp.load`` reads; ``coverage.json``: what of the network is quantized."""

    name = "quantization"

    model: Model
    files: Mapping[str, Path]
    sampling: Sampling
    quant: Quant

    @classmethod
    def of(cls, config: Config) -> "ReleasedStage":
        return cls(
            device=devices.resolve(config.device),
            model=config.model.bare,
            files={"released": released_file(config)},
            sampling=config.sampling,
            quant=config.quant,
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        network = released.build(self.model, self.files["released"], self.quant, self.sampling.channels_last)
        bits = LayerBits(self.quant.weight_bits, self.quant.act_bits)
        plan = {name: bits for name, _ in quantized_layers(network)}
        keep(folder, network, self.model, self.quant, plan, example_row(network, self.model.shape))


def released_file(config: Config) -> Path:
    """The file of a network that comes quantized. UserError where it is missing."""
    file = config.quantizer.file
    if file is None or not Path(file).is_file():
        raise UserError(f"quantizer.file={file}: no such file; give the path of the released checkpoint")
    return Path(file)
