"""Activation ranges, from what the calibration set shows."""

from dataclasses import dataclass, field
from typing import Annotated, Any, ClassVar

from annotated_types import Gt

from qdexp.config import ACTIVATIONS, UNTOUCHED, Config, Quant
from qdexp.methods.base import Step, Work, instance_of, norm_search
from qdexp.quant import network as networks
from qdexp.quant.network import LayerBits
from qdexp.quant.ranges import RangeEstimator
from qdexp.quant.timegroups import set_time


@dataclass(frozen=True, kw_only=True)
class Observe(Step):
    """Gives all activations their grids, with ranges estimated on the first ``rows`` rows of the calibration set (null: all),
    but on one row of each timestep and guidance branch at least. Dynamic grids (``quant.act.time``) need none.

    ``range``: the estimator, a ``_target_`` that extends ``qdexp.quant.ranges.RangeEstimator``.
    """

    bits: ClassVar[frozenset[str]] = frozenset({ACTIVATIONS})
    quantizes: ClassVar[frozenset[str]] = frozenset({ACTIVATIONS})
    precedes: ClassVar[frozenset[str]] = frozenset({ACTIVATIONS})
    quick: ClassVar[bool] = True

    range: dict[str, Any] = field(default_factory=norm_search)
    rows: Annotated[int, Gt(0)] | None = 64

    def depends_on(self, quant: Quant) -> Quant:
        """Groups of timesteps come later, from ranges of all timesteps on."""
        own = super().depends_on(quant)
        return own.at("static") if own.act.time == "groups" else own

    def check(self, config: Config) -> None:
        instance_of(self.range, RangeEstimator, "range")

    def apply(self, work: Work) -> None:
        plan = {name: LayerBits(UNTOUCHED, bits.act) for name, bits in work.plan.items()}
        networks.convert(work.network, plan, act_symmetric=work.quant.act.symmetric, softmax_bits=work.quant.softmax_bits)
        if work.quant.act.time == "dynamic":
            set_time(work.network, "dynamic")
        estimator = instance_of(self.range, RangeEstimator, "range")
        networks.observe_activations(work.network, work.first(self.rows), estimator)
