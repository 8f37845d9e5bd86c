"""Weight rounding by the calibration rows, with activations in full precision: one result for all their bit-widths."""

import copy
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from hydra.utils import instantiate

from qdexp import models
from qdexp.config import UNTOUCHED, Config
from qdexp.quant import checkpoint
from qdexp.quant import network as networks
from qdexp.quant.blocks import blocks_of
from qdexp.quant.rounding import nearest
from qdexp.recon.walk import Walk
from qdexp.stages.base import Stage
from qdexp.stages.calibration import CalibrationStage
from qdexp.stages.conversion import CHECKPOINT, convert, read_batches, weight_options


class RoundingStage(Stage):
    """``checkpoint/``: the network with quantized weights alone; ``blocks.json``: what reconstruction did for each block."""

    name = "rounding"
    version = 4
    sources = ("qdexp.stages.rounding", "qdexp.stages.conversion", "qdexp.recon", "qdexp.quant", "qdexp.models")

    def __init__(self, config: Config) -> None:
        super().__init__(_weights_alone(config))

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"calibration": CalibrationStage(self.config)}

    @property
    def options(self) -> dict[str, Any]:
        recon = self.config.recon
        iterations = asdict(recon.weights) | recon.arithmetic if self.config.quantizer.rounding == "adaround" else {}
        return {"recon": {"batch": recon.batch, "heldout": recon.heldout, **iterations}, **weight_options(self.config)}

    @property
    def files(self) -> dict[str, Path]:
        return models.files(self.config.model)

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        config = self.config
        batches = read_batches(inputs["calibration"], config, self.device)
        full = models.build(config.model, config.sampling.channels_last).to(self.device)
        network = copy.deepcopy(full)
        order = convert(network, config, batches)
        networks.quantize_weights(network, instantiate(config.quantizer.weight.range), nearest)
        walk = Walk(network, full, blocks_of(network, order), config.recon, config.seed, folder)
        if config.quantizer.rounding == "adaround":
            walk.learn_weights(batches)
        else:
            walk.round_weights(batches)
        checkpoint.save(folder / CHECKPOINT, network, config.model.network)


def _weights_alone(config: Config) -> Config:
    """The config without what only activations are quantized by."""
    layers = {pattern: {"weight_bits": bits["weight_bits"]} for pattern, bits in (config.quant.layers or {}).items()
              if "weight_bits" in bits}  # fmt: skip
    quant = replace(config.quant, act_bits=UNTOUCHED, softmax_bits=UNTOUCHED, layers=layers or None)
    return replace(config, quant=quant)
