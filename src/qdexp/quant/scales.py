"""Scales in few bits: how they are rounded, and what is stored of them.

    float32, float16, bfloat16   the scale itself, to nearest
    e8m0    a power of two, 2^(floor(log2 m) - e), m the largest magnitude of a group and e the exponent of the largest number
            (OCP Microscaling Formats (MX) Specification, version 1.0, section 6.3)
    e4m3    an E4M3 number times one float32 of the tensor, T = M / (448 x 6), M its largest magnitude: so the largest scale is
            448 T (NVFP4)

Computed with is the scale in float32 that these stand for, so that a network that is stored and read again has the same bits.
No scale is 0 or subnormal: a group whose elements are all 0 stays so.
"""

from typing import Literal, NamedTuple, get_args

import torch
from torch import Tensor

from qdexp.quant.floats import FLOATS, Float

ScaleType = Literal["float32", "float16", "bfloat16", "e8m0", "e4m3"]
SCALE_TYPES: tuple[str, ...] = get_args(ScaleType)
_DTYPES = {"float16": torch.float16, "bfloat16": torch.bfloat16}
_E4M3 = FLOATS["e4m3"]
TINY = torch.finfo(torch.float32).tiny
"""2^-126: the least scale. The reciprocal of a much smaller one is infinite, and 0 times that is not 0."""
_LEAST_OF_TENSOR = TINY / 2.0**_E4M3.lowest
"""The least scale of a tensor whose product with an E4M3 number, subnormal ones left out, is not less than `TINY`."""
BITS = {"float32": 32, "float16": 16, "bfloat16": 16, "e8m0": 8, "e4m3": 8}
TENSOR_BYTES = 4
"""The bytes of a tensor's own float32, with scales in e4m3."""


def rounded(scale: Tensor, kind: str) -> Tensor:
    """Positive float32 scales, as ``kind`` holds them: float32, float16 or bfloat16. Where a group has no width it is 1."""
    scale = torch.where(scale < TINY, 1.0, scale)
    if kind == "float32":
        return scale
    dtype = _DTYPES[kind]
    held = scale.clamp(torch.finfo(dtype).smallest_normal, torch.finfo(dtype).max).to(dtype).float()
    return torch.where(scale.isinf(), scale, held)


def power_of_two(magnitude: Tensor, number: Float) -> Tensor:
    """Scales in e8m0 of groups with these largest magnitudes, float32. An infinite one, like NaN, gives no number."""
    power = (magnitude.view(torch.int32) & 0x7F800000).view(torch.float32)
    return (power * 2.0**-number.highest).clamp_min(TINY)


class TwoLevels(NamedTuple):
    """Scales in e4m3: the E4M3 numbers, float32, and the float32 of the tensor, which broadcasts."""

    share: Tensor
    tensor: Tensor

    @property
    def scale(self) -> Tensor:
        """Computed with."""
        return self.share * self.tensor

    @property
    def reciprocal(self) -> Tensor:
        """The factor by which values are multiplied, rounded as in torchao's kernels: else ties would fall otherwise."""
        return self.tensor.reciprocal() / self.share


def two_levels(magnitude: Tensor, number: Float, top: Tensor) -> TwoLevels:
    """Scales in e4m3 of groups with these largest magnitudes, float32; ``top``: the largest of the tensor, which broadcasts."""
    tensor = (top / (_E4M3.largest * number.largest)).clamp_min(_LEAST_OF_TENSOR)
    share = (magnitude / number.largest / tensor).clamp_(2.0**_E4M3.lowest, _E4M3.largest)
    return TwoLevels(_E4M3.round_(share), tensor)


def levels_of(scale: Tensor) -> TwoLevels:
    """Split all scales of one tensor in e4m3, [groups], into the two levels whose products they are.

    The largest scale is 448 times that of the tensor, rounded; or the latter is the least one that there is. Waits for nothing.
    """
    near = scale.max().view(1) / _E4M3.largest
    ends = (torch.nextafter(near, near.new_full((1,), end)) for end in (0.0, torch.inf))
    tensors = torch.cat([near, *ends]).clamp_min(_LEAST_OF_TENSOR)
    shares = _E4M3.round_(scale[:, None] / tensors).clamp_(2.0**_E4M3.lowest, _E4M3.largest)
    chosen = (shares * tensors == scale[:, None]).sum(0).argmax().view(1)
    return TwoLevels(shares.index_select(1, chosen)[:, 0], tensors.index_select(0, chosen))


def encode(scale: Tensor, kind: str) -> tuple[Tensor, Tensor | None]:
    """The stored form of one tensor's scales [groups]: codes, and in e4m3 the tensor's own float32, [1]."""
    if kind == "e8m0":
        return (scale.view(torch.int32) >> 23).to(torch.uint8), None
    if kind == "e4m3":
        levels = levels_of(scale)
        return _E4M3.encode(levels.share), levels.tensor
    return scale.to(_DTYPES.get(kind, torch.float32)), None


def decode(codes: Tensor, kind: str, tensor: Tensor | None = None) -> Tensor:
    """The inverse of ``encode``: float32."""
    if kind == "e8m0":
        power = (codes.int() << 23).view(torch.float32)
        return torch.where(power.isinf(), torch.nan, power)
    if kind == "e4m3":
        assert tensor is not None
        return _E4M3.decode(codes) * tensor
    return codes.float()
