"""From a config to a network with quantized layers: what the two stages that quantize share."""

import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch.utils import _pytree as pytree

from qdexp import files
from qdexp.config import Model, Quant, WeightScheme
from qdexp.errors import UserError
from qdexp.models.describe import Description, describe
from qdexp.quant import checkpoint
from qdexp.quant import network as networks
from qdexp.quant.architecture import named
from qdexp.quant.blocks import Batch, call, first_row, output
from qdexp.quant.coverage import Coverage, Wanted, known_bits
from qdexp.quant.macs import count
from qdexp.quant.network import LayerBits
from qdexp.quant.scheme import GRANULARITIES
from qdexp.quant.shortcuts import split_sizes
from qdexp.stages.calibration import CalibrationStage, read_rows

COVERAGE = "coverage.json"
SAME = 0.01
"""Relative difference of what a network computes before and after it is saved: on a CPU there is none."""

Batches = Sequence[Batch]
"""The calibration set, or a part of it, at most ``sampling.batch`` rows each."""


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
) -> dict[str, LayerBits]:
    """Gives the layers of ``network`` their quantized classes, in place; returns their bits, in execution order."""
    example = first_row(batches[0])
    order = networks.execution_order(network, example)
    plan = networks.plan_bits(network, order, quant.weight_bits, quant.act_bits, quant.first_last_bits, quant.layers)
    networks.convert(
        network,
        plan,
        weight_granularity=GRANULARITIES[weight.granularity](),
        weight_symmetric=weight.symmetric,
        act_symmetric=act_symmetric,
        softmax_bits=quant.softmax_bits,
        splits=split_sizes(network, example, split),
    )
    return plan


def keep(
    folder: Path, network: torch.nn.Module, model: Model, quant: Quant, plan: Mapping[str, LayerBits], example: Batch
) -> None:
    """Writes a network that is quantized, ``example`` a row for it, as ``checkpoint/``, and its coverage.

    Raises UserError where it computes something else once it is read again, or where nothing of it is quantized.
    """
    example = first_row(example)
    checkpoint.save(folder / checkpoint.FOLDER, network, model.network)
    again = checkpoint.load(folder / checkpoint.FOLDER, named(model.network)).to(example[0].device)
    with torch.inference_mode():
        made, read = (output(call(one, example)).float() for one in (network, again))
    if (made - read).norm() > SAME * made.norm():
        raise UserError(f"model.network: {type(network).__name__} computes something else when it is read from its checkpoint: "
                        f"it keeps values that are neither parameters nor buffers; register these as buffers")  # fmt: skip
    wanted = Wanted(plan, LayerBits(quant.weight_bits, quant.act_bits), quant.softmax_bits)
    found = Coverage(again, count(again, example), known_bits(again), wanted)
    found.require_any(quant.label)
    if description_of(model) is None:
        warn(model, quant, found)
    files.write_text(folder / COVERAGE, json.dumps(found.content()))


def description_of(model: Model) -> Description | None:
    """None where the network asks for values, or for conditions of its own: only the stage itself can tell."""
    try:
        return describe(model)
    except UserError:
        return None


def warn(model: Model, quant: Quant, found: Coverage) -> None:
    """Says it where little of what the bits ask for is quantized."""
    warning = found.warning(quant.label)
    if warning is not None:
        print(f"warning: {model.name}: {warning}", flush=True)
