"""From a config to a network with quantized layers: what the two stages that quantize share."""

import fnmatch
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import torch
from hydra.errors import InstantiationException
from hydra.utils import instantiate
from torch.utils import _pytree as pytree

from qdexp import device as devices
from qdexp import models
from qdexp.config import UNTOUCHED, Config, Quant, WeightScheme
from qdexp.errors import UserError
from qdexp.models import released
from qdexp.models.conditions import example_condition
from qdexp.quant import network as networks
from qdexp.quant.architecture import check_plain
from qdexp.quant.blocks import Batch, first_row
from qdexp.quant.ranges import RangeEstimator
from qdexp.quant.rounding import resolve
from qdexp.quant.scheme import GRANULARITIES
from qdexp.quant.shortcuts import split_sizes
from qdexp.stages.calibration import CalibrationStage, read_rows

Batches = Sequence[Batch]
"""The calibration set, or a part of it, at most ``sampling.batch`` rows each."""


def released_file(config: Config) -> Path:
    """The file of a network that comes quantized. UserError where it is missing."""
    file = config.quantizer.file
    if file is None or not Path(file).is_file():
        raise UserError(f"quantizer.file={file}: no such file; give the path of the released checkpoint")
    return Path(file)


def observed_rows(rows: int | None, calibration: CalibrationStage) -> int | None:
    """How many of the calibration set's first rows activation ranges are estimated on: ``quantizer.act.rows``, but one of each
    timestep and branch at least, so that none goes unseen; None: all."""
    return None if rows is None else max(rows, calibration.calib.timesteps * calibration.trajectory.sampler.branches)


def read_batches(folder: Path, size: int, device: torch.device, rows: int | None = None) -> Batches:
    """The calibration set in ``folder``, or its first ``rows``, on ``device``, in batches of ``size``."""
    whole = read_rows(folder)
    stop = len(whole[0]) if rows is None else min(rows, len(whole[0]))
    return [_cut(whole, slice(start, min(start + size, stop)), device) for start in range(0, stop, size)]


def _cut(batch: Batch, rows: slice, device: torch.device) -> Batch:
    """These rows of every tensor in a batch."""
    part: Batch = pytree.tree_map(lambda tensor: tensor[rows].to(device), batch)
    return part


def convert(
    network: torch.nn.Module, quant: Quant, weight: WeightScheme, split: str, batches: Batches, act_symmetric: bool = False
) -> list[str]:
    """Gives the layers of ``network`` their quantized classes, in place; returns their names in execution order."""
    example = first_row(batches[0])
    order = networks.execution_order(network, example)
    networks.convert(
        network,
        networks.plan_bits(network, order, quant.weight_bits, quant.act_bits, quant.first_last_bits, quant.layers),
        weight_granularity=GRANULARITIES[weight.granularity](),
        weight_symmetric=weight.symmetric,
        act_symmetric=act_symmetric,
        softmax_bits=quant.softmax_bits,
        splits=split_sizes(network, example, split),
    )
    return order


def check(config: Config) -> None:
    """Raises where no checkpoint can keep the network, the quantizer's parts cannot be made, ``quant.layers`` or
    ``quantizer.split`` finds no layer, or there are too few rows to learn from; or where a released checkpoint is not what the
    other options say."""
    quantizer = config.quantizer
    check_plain(config.model.network)
    if quantizer.released:
        _check_released(config)
        return
    for part, target in (("weight", quantizer.weight.range), ("act", quantizer.act.range)):
        try:
            estimator = instantiate(target)
        except InstantiationException as error:
            raise UserError(f"quantizer.{part}.range: {' '.join(str(error).split())}") from error
        if not isinstance(estimator, RangeEstimator):
            raise UserError(f"quantizer.{part}.range._target_={target['_target_']}: no range estimator; name a subclass of "
                            f"qdexp.quant.ranges.RangeEstimator")  # fmt: skip
    if not quantizer.learns_rounding:
        resolve(quantizer.rounding)
    rows = config.calib.timesteps * config.calib.rows
    if quantizer.learns and config.recon.heldout >= rows:
        raise UserError(f"recon.heldout={config.recon.heldout}: leaves none of the {rows} rows of the calibration set to learn "
                        f"from; lower it, or raise calib.rows")  # fmt: skip
    if quantizer.learns:
        devices.require_arithmetic(devices.resolve(config.device), config.recon.precision, config.recon.compile)
    if quantizer.split != "off":
        _check_split(config)
    names = models.layer_names(config.model) if config.quant.layers else []
    for pattern in config.quant.layers or {}:
        if not fnmatch.filter(names, pattern):
            raise UserError(f"quant.layers: {pattern!r} matches no layer; layers are called like {names[0]!r}")


def _check_released(config: Config) -> None:
    quant = config.quant
    for option, value in (("first_last_bits", quant.first_last_bits), ("layers", quant.layers)):
        if value is not None:
            raise UserError(f"quant.{option}={value}: in a released checkpoint all layers have the same bits; give "
                            f"quant.{option}=null")  # fmt: skip
    if UNTOUCHED == quant.softmax_bits != quant.act_bits:
        raise UserError(f"quant.softmax_bits={UNTOUCHED}: in a released checkpoint the softmax is quantized; give 8, for "
                        f"Stable Diffusion 16")  # fmt: skip
    released.check(config.model, released_file(config), quant)


def _check_split(config: Config) -> None:
    network = models.skeleton(config.model)
    device = next(network.parameters()).device
    x_t, t = torch.zeros(1, *config.model.shape, device=device), torch.zeros(1, dtype=torch.int64, device=device)
    example = (x_t, t, pytree.tree_map(lambda part: part.to(device), example_condition(network)))
    with suppress(RuntimeError, TypeError):  # asks for values, or for conditions of its own: the stage itself will tell
        split_sizes(network, example, config.quantizer.split)
