"""Steps taken outside of stages, on a network at hand."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from torch import nn

from qdexp import models
from qdexp.config import Config
from qdexp.methods import Work
from qdexp.methods.recipe import steps_of
from qdexp.quant.blocks import Batch, first_row


def work_of(config: Config, network: nn.Module, batches: Sequence[Batch]) -> Work:
    """What a step of ``config`` works on, from ``batches`` of two timesteps; it keeps no file."""
    return Work(
        network=network,
        quant=config.quant,
        model=config.model,
        example=first_row(batches[0]),
        batches=batches,
        least=2,
        seed=config.seed,
        folder=Path(),
        build=lambda: models.build(config.model, config.sampling.channels_last),
    )


def take(config: Config, network: nn.Module, batches: Sequence[Batch]) -> None:
    """All steps of ``config``, in place, each with the bits that it is given in a cell."""
    work = work_of(config, network, batches)
    for one in steps_of(config):
        one.step.apply(replace(work, quant=config.quant.only(one.step.bits)))
