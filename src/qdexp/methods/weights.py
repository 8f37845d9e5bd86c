"""Steps that round weights: with activations in full precision, one result for all their bit-widths; or, where these are
quantized before, for what the weights meet then."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, ClassVar

from torch import Tensor, nn

from qdexp.config import UNTOUCHED, WEIGHTS, Config, Quant
from qdexp.methods.base import Step, Work, instance_of, norm_search
from qdexp.quant import network as networks
from qdexp.quant.affine import QParams, quantize
from qdexp.quant.formats import WeightFormat
from qdexp.quant.network import LayerBits
from qdexp.quant.ranges import RangeEstimator
from qdexp.quant.scheme import Scheme


def give_weights_grids(network: nn.Module, plan: Mapping[str, LayerBits], quant: Quant) -> None:
    """Lets the weights of the layers in ``plan`` have the grids that ``quant`` asks for, still to be found."""
    own = {name: LayerBits(bits.weight, UNTOUCHED) for name, bits in plan.items()}
    networks.convert(network, own, weight=WeightFormat(quant.weight_bits, **asdict(quant.weight)))


@dataclass(frozen=True, kw_only=True)
class WeightRounding(Step):
    """Finds the range of every weight's grid, and rounds to it.

    Attributes:
        range: The estimator of the ranges, a ``_target_`` that extends ``qdexp.quant.ranges.RangeEstimator``.
    """

    bits: ClassVar[frozenset[str]] = frozenset({WEIGHTS})
    quantizes: ClassVar[frozenset[str]] = frozenset({WEIGHTS})
    precedes: ClassVar[frozenset[str]] = frozenset({WEIGHTS})

    range: dict[str, Any] = field(default_factory=norm_search)

    def check(self, config: Config) -> None:
        instance_of(self.range, RangeEstimator, "range")

    def apply(self, work: Work) -> None:
        give_weights_grids(work.network, work.plan, work.quant)
        networks.quantize_weights(work.network, instance_of(self.range, RangeEstimator, "range"), self.integers)
        networks.verify_weights(work.network, work.example)

    def integers(self, weight: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
        """The codes of a weight, of its shape and of dtype ``scheme.dtype``: integers, or the bits of floating point numbers;
        here those of the nearest levels."""
        return quantize(weight, qparams, scheme)


@dataclass(frozen=True, kw_only=True)
class Nearest(WeightRounding):
    """Rounds each weight to the nearest level. A rounding of your own that looks at one weight at a time overrides
    ``integers``."""

    calibrated: ClassVar[bool] = False
    quick: ClassVar[bool] = True
