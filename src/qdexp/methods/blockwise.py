"""Steps that learn block by block."""

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from qdexp import device as devices
from qdexp.config import ACTIVATIONS, Config, Quant
from qdexp.config.learning import BlockWise, Iterations, ScaleLearning, WeightLearning
from qdexp.errors import UserError
from qdexp.methods.base import Step, Work, rows_left
from qdexp.methods.weights import WeightRounding
from qdexp.recon import memory

if TYPE_CHECKING:
    from qdexp.recon.walk import Walk

BACKWARD = 3
"""Multiplications of a forward and a backward pass, in those of a forward pass alone."""


def _walk(work: Work, options: BlockWise) -> "Walk":
    from qdexp.recon.walk import Walk  # late: it loads Lightning, which takes seconds

    return Walk(work.network, work.build(), work.adapter.blocks, options, work.seed, work.folder, work.memory)


def _check_rows(config: Config, heldout: int) -> None:
    """Whether there are rows to learn from, and room for them."""
    rows_left(config, heldout)
    memory.check(config.memory, memory.bytes_a_batch(config.model.shape, config.sampling.batch))
    if devices.are_here():  # a folder of another machine is looked for there
        memory.check_scratch(config.memory)


def _check_arithmetic(config: Config, options: Iterations) -> None:
    devices.require_arithmetic(devices.resolve(config.device), options.precision, options.compile)


@dataclass(frozen=True, kw_only=True)
class Gptq(BlockWise, WeightRounding):
    """GPTQ: second-order rounding in one pass, without iterations, towards full-precision outputs (Frantar et al. 2022,
    arXiv 2210.17323; asymmetric calibration: Li et al. 2025, arXiv 2504.02692)."""

    def check(self, config: Config) -> None:
        super().check(config)
        _check_rows(config, self.heldout)

    def apply(self, work: Work) -> None:
        super().apply(work)
        _walk(work, self).round_weights(work.batches)

    def passes(self, rows: int) -> float:
        return 2.0 * rows


@dataclass(frozen=True, kw_only=True)
class AdaRound(WeightLearning, WeightRounding):
    """AdaRound: rounding up or down is learned, block by block (Nagel et al. 2020, arXiv 2004.10568; blocks as in BRECQ, Li et
    al. 2021, arXiv 2102.05426)."""

    def check(self, config: Config) -> None:
        super().check(config)
        _check_rows(config, self.heldout)
        _check_arithmetic(config, self)

    def apply(self, work: Work) -> None:
        super().apply(work)
        _walk(work, self).learn_weights(work.batches)

    def passes(self, rows: int) -> float:
        return 2.0 * rows + BACKWARD * self.iterations * self.batch


@dataclass(frozen=True, kw_only=True)
class LearnScales(ScaleLearning, Step):
    """Learns the scales of static activation grids block by block, starting from the observed ranges (LSQ, Esser et al. 2020,
    arXiv 1902.08153; in blocks as in Q-Diffusion, Li et al. 2023, arXiv 2302.04304). Where scales belong to tokens or groups,
    only layers with other bits have static grids, such as the first and the last."""

    bits: ClassVar[frozenset[str]] = frozenset({ACTIVATIONS})
    needs: ClassVar[frozenset[str]] = frozenset({ACTIVATIONS})

    def applies(self, quant: Quant) -> bool:
        """Whether anything is learned: not with 0 iterations, nor where a format computes all of its scales at the call."""
        kept = quant.keeps_grids or quant.act.granularity == "per_tensor"
        return self.iterations > 0 and super().applies(quant) and kept

    def check(self, config: Config) -> None:
        if not config.quant.keeps_grids:
            raise UserError("quant.act.time=dynamic: such grids have no scales to be learned; add quantizer.steps.scales=null")
        _check_rows(config, self.heldout)
        _check_arithmetic(config, self)

    def apply(self, work: Work) -> None:
        _walk(work, self).learn_scales(work.batches)

    def passes(self, rows: int) -> float:
        return 2.0 * rows + BACKWARD * self.iterations * self.batch
