"""Weights as int8, with a scale and perhaps a zero point for each output channel.

Up to 7 bits, and where the grid is symmetric, `w_int - zero_point` is an int8 itself. With 8 bits it may need 9: then the
integers are w_int - 128, the zero point is what is left of it, and the product is one with the integers alone, less the zero
point times the sum of the input (Jacob et al. 2018, arXiv 1712.05877, equation 7):

    sum (X - z) (W - z_w) = sum (X - z) W - z_w sum (X - z)
"""

from dataclasses import dataclass

import torch
from torch import Tensor

from qdexp.quant.layers import QuantizedLayer

_INT8 = torch.iinfo(torch.int8)


@dataclass(frozen=True)
class Factor:
    """The weight that meets one part of a layer's input: ``scale`` (``integers`` - ``zero_point``).

    integers: int8 [out, in, ...]. scale: float32 [out]. zero_point: float32 [out]; None where it is 0.
    """

    integers: Tensor
    scale: Tensor
    zero_point: Tensor | None


def factors_of(layer: QuantizedLayer) -> list[Factor]:
    """The factors of a layer: one for each part of its input, or a single one. The layer's grid is per tensor or per channel of
    each part."""
    assert layer.weight_int is not None and layer.weight_qparams is not None
    parts = layer.weight_int.split(layer.parts, 1) if layer.parts else (layer.weight_int,)
    grids = zip(*(values.chunk(len(parts)) for values in layer.weight_qparams), strict=True)
    return [_factor(codes, *grid) for codes, grid in zip(parts, grids, strict=True)]


def _factor(codes: Tensor, scale: Tensor, zero_point: Tensor) -> Factor:
    scale = scale.float().expand(len(codes)).contiguous()
    centred = codes.int() - zero_point.view(-1, *[1] * (codes.ndim - 1))
    if centred.amin() >= _INT8.min and centred.amax() <= _INT8.max:
        return Factor(_laid_out(centred), scale, None)
    return Factor(_laid_out(codes.int() + _INT8.min), scale, (zero_point + _INT8.min).float().expand(len(codes)).contiguous())


def _laid_out(integers: Tensor) -> Tensor:
    return integers.to(torch.int8, memory_format=torch.contiguous_format).contiguous()
