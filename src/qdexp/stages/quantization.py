"""The quantized network, kept as a packed checkpoint: weights rounded, activation ranges observed on the calibration set and,
if the quantizer says so, learned; or all of it taken from a file."""

import copy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate

from qdexp import models
from qdexp.models import released
from qdexp.quant import checkpoint
from qdexp.quant import network as networks
from qdexp.quant.affine import QParams
from qdexp.quant.blocks import blocks_of
from qdexp.quant.rounding import resolve
from qdexp.recon.walk import Walk
from qdexp.stages.base import Stage
from qdexp.stages.calibration import CalibrationStage
from qdexp.stages.conversion import (
    CHECKPOINT,
    convert,
    observed_rows,
    read_batches,
    released_files,
    released_options,
    scheme_options,
    weight_options,
)
from qdexp.stages.rounding import RoundingStage


class QuantizationStage(Stage):
    """``checkpoint/``: what ``qdexp.load`` reads; ``blocks.json`` where scales were learned."""

    name = "quantization"
    version = 3
    sources = ("qdexp.stages.quantization", "qdexp.stages.conversion", "qdexp.recon", "qdexp.quant", "qdexp.models")

    @property
    def inputs(self) -> dict[str, Stage]:
        if self.config.quantizer.released:
            return {}
        learned = {"rounding": RoundingStage(self.config)} if self.config.quantizer.learns_rounding else {}
        return {"calibration": CalibrationStage(self.config), **learned}

    @property
    def options(self) -> dict[str, Any]:
        if self.config.quantizer.released:
            return released_options(self.config)
        recon, act = self.config.recon, self.config.quantizer.act
        iterations = asdict(recon.scales) | recon.arithmetic
        learning = {"batch": recon.batch, "heldout": recon.heldout, **iterations} if act.learned else None
        observing = {**scheme_options(act), "rows": observed_rows(self.config)}
        return {"act": observing, "recon": learning, **weight_options(self.config)}

    @property
    def files(self) -> dict[str, Path]:
        return released_files(self.config) or models.files(self.config.model)

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        config, quantizer = self.config, self.config.quantizer
        if quantizer.released:
            file = released_files(config)["released"]
            network = released.build(config.model, file, config.quant, config.sampling.channels_last)
            checkpoint.save(folder / CHECKPOINT, network, config.model.network)
            return
        batches = read_batches(inputs["calibration"], config, self.device)
        network = models.build(config.model, config.sampling.channels_last).to(self.device)
        full = copy.deepcopy(network) if quantizer.act.learned else None
        order = convert(network, config, batches)
        torch.manual_seed(config.seed)
        if quantizer.learns_rounding:
            _take_weights(network, inputs["rounding"] / CHECKPOINT)
        else:
            networks.quantize_weights(network, instantiate(quantizer.weight.range), resolve(quantizer.rounding))
        observed = read_batches(inputs["calibration"], config, self.device, observed_rows(config))
        networks.observe_activations(network, observed, instantiate(quantizer.act.range))
        del observed  # its room is for the walk
        if full is None:
            checkpoint.save(folder / CHECKPOINT, network, config.model.network)
            return
        walk = Walk(network, full, blocks_of(network, order), config.recon, config.seed, folder)
        walk.learn_scales(batches)
        checkpoint.save(folder / CHECKPOINT, network, config.model.network)


def _take_weights(network: torch.nn.Module, folder: Path) -> None:
    """Gives ``network`` the weights of the checkpoint in ``folder``."""
    rounded = dict(networks.quantized_layers(checkpoint.load(folder)))
    for name, layer in networks.quantized_layers(network):
        if layer.weight_scheme is not None:
            source, device = rounded[name], layer.weight.device
            assert source.weight_int is not None and source.weight_qparams is not None
            layer.set_weight(source.weight_int.to(device), QParams(*(part.to(device) for part in source.weight_qparams)))
