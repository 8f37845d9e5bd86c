"""Rotated coordinates, as a step: values that stand out are spread over their neighbours before anything is rounded."""

from dataclasses import dataclass, replace
from typing import Annotated, Any, ClassVar

from annotated_types import Ge
from torch import nn

from qdexp.config import UNTOUCHED, Quant
from qdexp.methods.base import ROTATIONS, Work
from qdexp.methods.layerwise import LayerWise, quantized_at_all
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.network import LayerBits
from qdexp.quant.transforms import Rotation, runs_of

ANY = 8
"""Bits: of the bits, which layers have any is all that counts."""


@dataclass(frozen=True, kw_only=True)
class Rotate(LayerWise):
    """Gives the input channels of each layer other coordinates, by Hadamard matrices with random signs (QuaRot, Ashkboos et al.
    2024, arXiv 2404.00456; in groups of channels: ConvRot, arXiv 2512.03673). A layer that is quantized in parts is rotated
    part by part.

    Attributes:
        size: The channels of a block, a power of two; null: one block of all channels, where there is such a matrix.
    """

    quantizes: ClassVar[frozenset[str]] = frozenset({ROTATIONS})
    calibrated: ClassVar[bool] = False
    quick: ClassVar[bool] = True

    size: Annotated[int, Ge(2)] | None = None

    def __post_init__(self) -> None:
        if self.size is not None and self.size & (self.size - 1):
            raise ValueError(f"size={self.size}: is no power of two; give 16, 32, 64 or another one, or null for all channels")

    def depends_on(self, quant: Quant) -> Quant:
        """The layers that are quantized; their bits do not matter."""
        weight_bits, act_bits = map(_any, (quant.weight_bits, quant.act_bits))
        own = {pattern: {option: _any(bits) for option, bits in one.items()} for pattern, one in (quant.layers or {}).items()}
        return replace(Quant(weight_bits, act_bits, softmax_bits=UNTOUCHED, first_last_bits=None), layers=own or None)

    def fits(self, layer: nn.Module, bits: LayerBits) -> bool:
        return quantized_at_all(bits) and any(order > 1 for _, order in self._runs(layer))

    def apply(self, work: Work) -> None:
        for name, layer in self.layers(work).items():
            rotation = Rotation.drawn(self._runs(layer), layer.channel_dim, work.seed_of(name))
            layer.transforms.append(rotation.to(layer.weight.device))

    def _runs(self, layer: Any) -> list[tuple[int, int]]:
        parts = layer.parts if isinstance(layer, QuantizedLayer) else None
        return runs_of(parts or (layer.weight.shape[1],), self.size)


def _any(bits: int) -> int:
    return UNTOUCHED if bits == UNTOUCHED else ANY
