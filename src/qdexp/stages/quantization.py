"""The quantized network, kept as a packed checkpoint: weights rounded, activation ranges observed on the calibration set and,
if the quantizer says so, learned."""

import copy
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from hydra.utils import instantiate

from qdexp import models
from qdexp.config import BlockLearning, Config, Model, Quant, Quantizer, Sampling
from qdexp.quant import checkpoint
from qdexp.quant import network as networks
from qdexp.quant.affine import QParams
from qdexp.quant.architecture import named
from qdexp.quant.blocks import blocks_of, first_row
from qdexp.quant.rounding import resolve
from qdexp.recon.walk import Walk
from qdexp.stages.base import Stage
from qdexp.stages.calibration import CalibrationStage
from qdexp.stages.conversion import convert, keep, observed_rows, read_batches
from qdexp.stages.rounding import RoundingStage


@dataclass(frozen=True, eq=False, kw_only=True)
class QuantizationStage(Stage):
    """``checkpoint/``: what ``qdexp.load`` reads; ``coverage.json``: what of the network is quantized; ``blocks.json`` where
    scales were learned.

    ``recon``: None where no scales are learned; ``rounding``: None where weights are rounded without calibration rows.
    """

    name = "quantization"

    model: Model
    files: Mapping[str, Path]
    sampling: Sampling
    quant: Quant
    quantizer: Quantizer
    recon: BlockLearning | None
    seed: int
    calibration: CalibrationStage
    rounding: RoundingStage | None

    @classmethod
    def of(cls, config: Config) -> "QuantizationStage":
        calibration, quantizer = CalibrationStage.of(config), config.quantizer
        return cls(
            device=calibration.device,
            model=config.model.bare,
            files=models.files(config.model),
            sampling=config.sampling,
            quant=config.quant,
            quantizer=quantizer,
            recon=config.recon.of_scales() if quantizer.act.learned else None,
            seed=config.seed,
            calibration=calibration,
            rounding=RoundingStage.of(config, calibration) if quantizer.learns_rounding else None,
        )

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        weight, act, batch = self.quantizer.weight, self.quantizer.act, self.sampling.batch
        batches = read_batches(inputs["calibration"], batch, self.device)
        network = models.build(self.model, self.sampling.channels_last).to(self.device)
        full = copy.deepcopy(network) if self.recon is not None else None
        plan = convert(network, self.quant, weight, self.quantizer.split, batches, act.symmetric)
        torch.manual_seed(self.seed)
        if self.rounding is not None:
            rounded = checkpoint.load(inputs["rounding"] / checkpoint.FOLDER, named(self.model.network))
            _take_weights(network, rounded)
        else:
            networks.quantize_weights(network, instantiate(weight.range), resolve(self.quantizer.rounding))
        networks.verify_weights(network, first_row(batches[0]))
        observed = read_batches(inputs["calibration"], batch, self.device, observed_rows(act.rows, self.calibration))
        networks.observe_activations(network, observed, instantiate(act.range))
        del observed  # its room is for the walk
        if self.recon is not None and full is not None:
            Walk(network, full, blocks_of(network, plan), self.recon, self.seed, folder).learn_scales(batches)
        keep(folder, network, self.model, self.quant, plan, batches[0])


def _take_weights(network: torch.nn.Module, found: torch.nn.Module) -> None:
    """Gives ``network`` the quantized weights of the one that was ``found``."""
    rounded = dict(networks.quantized_layers(found))
    for name, layer in networks.quantized_layers(network):
        if layer.weight_scheme is not None:
            source, device = rounded[name], layer.weight.device
            assert source.weight_int is not None and source.weight_qparams is not None
            layer.set_weight(source.weight_int.to(device), QParams(*(part.to(device) for part in source.weight_qparams)))
