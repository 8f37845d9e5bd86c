"""Activation ranges by groups of timesteps: a diffusion model's activations change with t, and so may their grids."""

from dataclasses import dataclass
from typing import ClassVar

from hydra.utils import instantiate

from qdexp.calib.selection import choose_positions
from qdexp.config import ACTIVATIONS, TIMESTEP_GROUPS, Config, Quant
from qdexp.errors import UserError
from qdexp.methods.base import Work
from qdexp.methods.observe import RangeEstimation
from qdexp.quant.timegroups import find_groups, set_time
from qdexp.sampling.sampler import timesteps_of


@dataclass(frozen=True, kw_only=True)
class TimestepScales(RangeEstimation):
    """Finds the ``quant.act.groups`` contiguous groups of timesteps that lose the fewest bits to grids in common, and a range
    of each group for all activations (of the family of TDQ, So et al. 2023, arXiv 2306.02316, and TFMQ-DM, Huang et al. 2024,
    arXiv 2311.16503). It is left out unless ``quant.act.time`` is ``groups``.

    Each group sees the rows of its own timesteps.
    """

    needs: ClassVar[frozenset[str]] = frozenset({ACTIVATIONS})
    quantizes: ClassVar[frozenset[str]] = frozenset({TIMESTEP_GROUPS})

    def applies(self, quant: Quant) -> bool:
        return super().applies(quant) and quant.act.time == "groups"

    def check(self, config: Config) -> None:
        super().check(config)
        groups, steps = config.quant.act.groups, len(timesteps_of(config.model, config.protocol))
        strategy = instantiate(config.calib.strategy, _partial_=True)
        found = len(set(choose_positions(strategy, steps, config.calib.timesteps, config.seed)))
        if found < groups:
            raise UserError(f"quant.act.groups={groups}: the calibration set has rows of {found} timesteps; choose fewer "
                            f"groups, or calib=uniform with more timesteps")  # fmt: skip

    def apply(self, work: Work) -> None:
        set_time(work.network, find_groups(work.network, work.first(self.rows), work.quant.act.groups))
        self.observe(work)
