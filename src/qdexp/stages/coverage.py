"""Coverage of the quantized network, and the cost of its products and weights."""

import json
from dataclasses import dataclass
from pathlib import Path

from qdexp import files, models
from qdexp.config import Config, Model, Quant
from qdexp.models import checkpoint
from qdexp.models.architecture import named
from qdexp.models.conditions import example_row, has_example
from qdexp.models.describe import description_of
from qdexp.quant.adapter import Adapter
from qdexp.quant.blocks import Batch
from qdexp.quant.coverage import Coverage, Wanted, known_bits
from qdexp.quant.macs import count
from qdexp.quant.network import LayerBits, plan_bits
from qdexp.quant.packed import added_bytes, group_bytes, schemes_of
from qdexp.stages.base import Results, Stage
from qdexp.stages.calibration import CalibrationStage, read_batches
from qdexp.stages.steps import StepStage

FILE = "coverage.json"


@dataclass(frozen=True, eq=False, kw_only=True)
class CoverageStage(Stage):
    """``coverage.json``: see ``qdexp.quant.coverage.Coverage.content``; and ``nominal_bytes``."""

    name = "coverage"
    quick = True

    model: Model
    quant: Quant
    quantization: StepStage
    calibration: CalibrationStage | None

    @classmethod
    def of(cls, config: Config, quantization: StepStage) -> "CoverageStage":
        return cls(
            device=quantization.device,
            model=config.model.bare,
            quant=config.quant,
            quantization=quantization,
            calibration=None if has_example(config.model) else CalibrationStage.of(config),
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        network = checkpoint.load(inputs["quantization"] / checkpoint.FOLDER, named(self.model.network)).to(self.device)
        example: Batch = example_row(network, self.model)
        if self.calibration is not None:
            (example,) = read_batches(inputs["calibration"], 1, self.device, rows=1)
        quant = self.quant
        adapter = Adapter(network, example)
        plan = plan_bits(network, adapter.layers, **quant.by_layer)
        wanted = Wanted(plan, adapter.sites, LayerBits(quant.weight_bits, quant.act_bits), quant.softmax_bits)
        found = Coverage(network, count(network, example), known_bits(network), wanted)
        found.require_any(quant.label)
        if description_of(self.model) is None:
            warn(self.model, quant, found)
        content = found.content()
        nominal = checkpoint.nominal_bytes(
            models.parameters(self.model),
            quant.weight_bits,
            content["weights_left_out"],
            group_bytes(schemes_of(network)) + added_bytes(network),
        )
        files.write_text(folder / FILE, json.dumps(content | {"nominal_bytes": nominal}))

    def results(self, folder: Path) -> Results:
        found = json.loads((folder / FILE).read_text())
        return {"coverage": {name: value for name, value in found.items() if name not in ("bit_operations", "nominal_bytes")}}


def check(config: Config) -> None:
    """Warns where little of what the bits ask for would be quantized. Raises UserError where nothing would be."""
    description = description_of(config.model)
    if description is not None:
        found = description.coverage(config.quant)
        found.require_any(config.quant.label)
        warn(config.model, config.quant, found)


def warn(model: Model, quant: Quant, found: Coverage) -> None:
    """Says it where little of what the bits ask for is quantized."""
    warning = found.warning(quant.label)
    if warning is not None:
        print(f"warning: {model.name}: {warning}", flush=True)
