"""Nearest rounding on the grid of a tensor's own range: what steps judge by that come before the grids."""

from torch import Tensor

from qdexp.quant.affine import QParams, fake_quantize, qparams_from_range
from qdexp.quant.ranges import MinMax, estimate
from qdexp.quant.scheme import Scheme


def spanning(x: Tensor, scheme: Scheme) -> QParams:
    """The grid that spans the values of a tensor."""
    return qparams_from_range(*estimate(x, scheme, MinMax()), scheme)


def nearest(x: Tensor, scheme: Scheme | None) -> Tensor:
    """A tensor, rounded to the nearest values of the grid that spans it; as it is where there is no scheme."""
    return x if scheme is None else fake_quantize(x, spanning(x, scheme), scheme)
