"""The arithmetic in which methods are made and compared: floating point on the quantized grid."""

from dataclasses import dataclass

from torch import nn

from qdexp.backends.base import Backend, Lowered


@dataclass(frozen=True, kw_only=True)
class Simulated(Backend):
    """The network as it is: each layer multiplies, in floating point, the values that its grids stand for."""

    def lower(self, network: nn.Module) -> Lowered:
        return Lowered(network=network)
