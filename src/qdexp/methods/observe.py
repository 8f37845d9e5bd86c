"""Activation ranges, from what the calibration set shows."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from types import MappingProxyType
from typing import Annotated, Any, ClassVar

from annotated_types import Gt
from torch import nn

from qdexp.config import ACTIVATIONS, UNTOUCHED, Config, Quant
from qdexp.methods.base import Step, Work, instance_of, norm_search
from qdexp.quant import network as networks
from qdexp.quant.attention import Site
from qdexp.quant.formats import ActFormat
from qdexp.quant.network import LayerBits
from qdexp.quant.ranges import RangeEstimator


def give_activations_grids(
    network: nn.Module, plan: Mapping[str, LayerBits], quant: Quant, sites: Mapping[str, Site] = MappingProxyType({})
) -> None:
    """Lets the inputs of the layers in ``plan``, and what is multiplied at ``sites``, have the grids that ``quant`` asks for,
    static ones still to be found."""
    own = {name: LayerBits(UNTOUCHED, bits.act) for name, bits in plan.items()}
    act = ActFormat(quant.act_bits, **asdict(quant.act))
    networks.convert(network, own, sites, act=act, softmax_bits=quant.softmax_bits)


@dataclass(frozen=True, kw_only=True)
class RangeEstimation(Step):
    """Ranges of activations, estimated on the calibration set.

    Attributes:
        range: The estimator, a ``_target_`` that extends ``qdexp.quant.ranges.RangeEstimator``.
        rows: The rows of the calibration set that are used (null: all), one of each timestep and guidance branch at least.
    """

    bits: ClassVar[frozenset[str]] = frozenset({ACTIVATIONS})
    quick: ClassVar[bool] = True

    range: dict[str, Any] = field(default_factory=norm_search)
    rows: Annotated[int, Gt(0)] | None = 64

    def check(self, config: Config) -> None:
        instance_of(self.range, RangeEstimator, "range")

    def observe(self, work: Work) -> None:
        """Fits all grids of the network to the rows, and lets them round from then on."""
        estimator = instance_of(self.range, RangeEstimator, "range")
        networks.observe_activations(work.network, work.first(self.rows), estimator)


@dataclass(frozen=True, kw_only=True)
class Observe(RangeEstimation):
    """Gives all activations their grids, and these their ranges. Dynamic grids (``quant.act.time``) need none."""

    quantizes: ClassVar[frozenset[str]] = frozenset({ACTIVATIONS})
    precedes: ClassVar[frozenset[str]] = frozenset({ACTIVATIONS})

    def depends_on(self, quant: Quant) -> Quant:
        """Groups of timesteps come later, from ranges of all timesteps on."""
        own = super().depends_on(quant)
        return own.at("static") if own.act.time == "groups" else own

    def apply(self, work: Work) -> None:
        give_activations_grids(work.network, work.plan, work.quant, work.adapter.sites)
        self.observe(work)
