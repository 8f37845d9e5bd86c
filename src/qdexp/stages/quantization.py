"""The quantized network, kept as a packed checkpoint: weights rounded, activation ranges observed on the calibration set."""

import fnmatch
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.utils import instantiate
from torch import Tensor

from qdexp import models
from qdexp.config import ActScheme, Config, WeightScheme
from qdexp.errors import UserError
from qdexp.quant import checkpoint
from qdexp.quant import network as networks
from qdexp.quant.rounding import resolve
from qdexp.quant.scheme import GRANULARITIES
from qdexp.stages.base import Stage, identity, network_options
from qdexp.stages.calibration import CalibrationStage, read_rows

CHECKPOINT = "checkpoint"


class QuantizationStage(Stage):
    """``checkpoint/``: what ``qdexp.load`` reads."""

    name = "quantization"
    version = 1
    sources = ("qdexp.stages.quantization", "qdexp.quant", "qdexp.models")

    @property
    def inputs(self) -> dict[str, Stage]:
        return {"calibration": CalibrationStage(self.config)}

    @property
    def options(self) -> dict[str, Any]:
        quantizer = self.config.quantizer
        return {
            "bits": vars(self.config.quant),
            "layers": list(self.config.quant.layers or {}),  # their order too: later patterns win
            "weight": _scheme_options(quantizer.weight),
            "act": _scheme_options(quantizer.act),
            "rounding": identity({"_target_": quantizer.rounding}) if "." in quantizer.rounding else quantizer.rounding,
            "seed": self.config.seed,
            **network_options(self.config),
        }

    @property
    def files(self) -> dict[str, Path]:
        return {"weights": Path(self.config.model.weights)}

    def compute(self, folder: Path, inputs: dict[str, Path]) -> None:
        rows = [part[: self.config.quantizer.act.rows].to(self.device) for part in read_rows(inputs["calibration"])]
        batches = list(zip(*(part.split(self.config.sampling.batch) for part in rows), strict=True))
        network = models.build(self.config.model, self.config.sampling.channels_last).to(self.device)
        torch.manual_seed(self.config.seed)
        quantize(network, self.config, batches)
        checkpoint.save(folder / CHECKPOINT, network, self.config.model.network)


def quantize(network: torch.nn.Module, config: Config, batches: Sequence[Sequence[Tensor]]) -> None:
    """Quantizes ``network`` in place; ``batches`` of (x_t, t) are the calibration set."""
    quant, quantizer = config.quant, config.quantizer
    plan = plan_bits(network, config, batches[0])
    networks.convert(
        network,
        plan,
        weight_granularity=GRANULARITIES[quantizer.weight.granularity](),
        weight_symmetric=quantizer.weight.symmetric,
        act_symmetric=quantizer.act.symmetric,
        softmax_bits=quant.softmax_bits,
    )
    networks.quantize_weights(network, instantiate(quantizer.weight.range), resolve(quantizer.rounding))
    networks.observe_activations(network, batches, instantiate(quantizer.act.range))


def plan_bits(network: torch.nn.Module, config: Config, example: Sequence[Tensor]) -> dict[str, networks.LayerBits]:
    """The bits of every layer. Raises UserError where ``quant.layers`` names none."""
    quant = config.quant
    order = networks.execution_order(network, [part[:1] for part in example])
    return networks.plan_bits(network, order, quant.weight_bits, quant.act_bits, quant.first_last_bits, quant.layers)


def check(config: Config) -> None:
    """Raises where the quantizer's parts cannot be made or a pattern of ``quant.layers`` names no layer."""
    quantizer = config.quantizer
    instantiate(quantizer.weight.range)
    instantiate(quantizer.act.range)
    resolve(quantizer.rounding)
    names = models.layer_names(config.model) if config.quant.layers else []
    for pattern in config.quant.layers or {}:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"quant.layers: {pattern!r} matches no layer; layers are called like {names[0]!r}")


def _scheme_options(scheme: WeightScheme | ActScheme) -> dict[str, Any]:
    return {**vars(scheme), "range": identity(scheme.range)}
