"""Weight rounding by the calibration rows, with activations in full precision: one result for all their bit-widths."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

from hydra.utils import instantiate

from qdexp import models
from qdexp.config import UNTOUCHED, BlockLearning, Config, Model, Quant, Sampling, WeightScheme
from qdexp.quant import checkpoint
from qdexp.quant import network as networks
from qdexp.quant.blocks import blocks_of, first_row
from qdexp.quant.rounding import nearest
from qdexp.recon.walk import Walk
from qdexp.stages.base import Stage
from qdexp.stages.calibration import CalibrationStage
from qdexp.stages.conversion import convert, read_batches


@dataclass(frozen=True, eq=False, kw_only=True)
class RoundingStage(Stage):
    """``checkpoint/``: the network with quantized weights alone; ``blocks.json``: what reconstruction did for each block."""

    name = "rounding"

    model: Model
    files: Mapping[str, Path]
    sampling: Sampling
    quant: Quant
    weight: WeightScheme
    rounding: str
    split: str
    recon: BlockLearning
    seed: int
    calibration: CalibrationStage

    @classmethod
    def of(cls, config: Config, calibration: CalibrationStage) -> "RoundingStage":
        quantizer = config.quantizer
        return cls(
            device=calibration.device,
            model=config.model.bare,
            files=models.files(config.model),
            sampling=config.sampling,
            quant=_weights_alone(config.quant),
            weight=quantizer.weight,
            rounding=quantizer.rounding,
            split=quantizer.split,
            recon=config.recon.of_weights(quantizer.rounding),
            seed=config.seed,
            calibration=calibration,
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        batches = read_batches(inputs["calibration"], self.sampling.batch, self.device)
        full = models.build(self.model, self.sampling.channels_last).to(self.device)
        network = copy.deepcopy(full)
        plan = convert(network, self.quant, self.weight, self.split, batches)
        networks.quantize_weights(network, instantiate(self.weight.range), nearest)
        networks.verify_weights(network, first_row(batches[0]))
        walk = Walk(network, full, blocks_of(network, plan), self.recon, self.seed, folder)
        if self.rounding == "adaround":
            walk.learn_weights(batches)
        else:
            walk.round_weights(batches)
        checkpoint.save(folder / checkpoint.FOLDER, network, self.model.network)


def _weights_alone(quant: Quant) -> Quant:
    """Without what only activations are quantized by."""
    layers = {pattern: {"weight_bits": bits["weight_bits"]} for pattern, bits in (quant.layers or {}).items()
              if "weight_bits" in bits}  # fmt: skip
    return replace(quant, act_bits=UNTOUCHED, softmax_bits=UNTOUCHED, layers=layers or None)
