"""Small floating point numbers, as the OCP formats define them (OCP 8-bit Floating Point Specification, revision 1.0; OCP
Microscaling Formats (MX) Specification, version 1.0).

A number of E exponent bits e, M mantissa bits m and bias b stands for

    (-1)^sign 2^(e - b) (1 + m / 2^M),  e > 0        (-1)^sign 2^(1 - b) m / 2^M,  e = 0

so that between two powers of two numbers lie 2^-M times the lower power apart, and below 2^(1 - b) as far as just above it.
E4M3 and E5M2 have codes that are no numbers; E2M1 has none.
"""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

_EXPONENT = 0x7F800000
"""The exponent's bits of a float32, which alone are a power of two."""
_LARGEST_POWER = 2.0**127


@dataclass(frozen=True)
class Float:
    """A kind of number: its mantissa bits, the exponents of its least and of its largest powers of two, its largest value."""

    bits: int
    mantissa: int
    lowest: int
    highest: int
    largest: float
    dtype: torch.dtype | None = None
    """Torch's, where it computes with it."""

    def spacing(self, v: Tensor) -> Tensor:
        """The distance between neighbouring numbers at float32 values, 0 included; just beyond them where they are powers of
        two."""
        power = (v.view(torch.int32) & _EXPONENT).view(torch.float32)  # of infinities and NaN: infinite
        return power.clamp_(2.0**self.lowest, _LARGEST_POWER).mul_(2.0**-self.mantissa)

    def gap(self, number: Tensor) -> Tensor:
        """The distance from numbers of this kind to the next one above."""
        return self.spacing(torch.where(number < 0, number * (1 - 2.0**-12), number))

    def round_(self, v: Tensor, rounding: Callable[[Tensor], Tensor] = Tensor.round_) -> Tensor:
        """Float32 values, overwritten -> the nearest number, of two the one whose last bit is 0; as if there were larger ones
        than the largest. With another ``rounding``, such as ``torch.Tensor.floor_``, the next one in its direction."""
        spacing = self.spacing(v)
        return rounding(v.div_(spacing)).mul_(spacing)

    def encode(self, numbers: Tensor) -> Tensor:
        """Numbers of this kind -> their bits, uint8. NaN has some code of its own where there is one."""
        if self.dtype is not None:
            return numbers.to(self.dtype).view(torch.uint8)
        magnitude = numbers.abs()
        power = magnitude.clamp_min(2.0**self.lowest).log2().floor_()  # exact: numbers have few bits
        code = (power - self.lowest) * 2**self.mantissa + magnitude / (2.0 ** (power - self.mantissa))
        sign = numbers.signbit().to(torch.uint8) << (self.bits - 1)
        return code.nan_to_num_(0).to(torch.uint8) | sign

    def decode(self, codes: Tensor) -> Tensor:
        """The inverse of ``encode``, float32."""
        if self.dtype is not None:
            return codes.view(self.dtype).float()
        index = (codes & (2 ** (self.bits - 1) - 1)).float()
        power = (index / 2**self.mantissa).floor_().sub_(1).clamp_min_(0)
        magnitude = (index - power * 2**self.mantissa) * 2.0 ** (power + self.lowest - self.mantissa)
        return torch.where(codes >= 2 ** (self.bits - 1), -magnitude, magnitude)


FLOATS = {
    "e2m1": Float(4, 1, 0, 2, 6.0),
    "e4m3": Float(8, 3, -6, 8, 448.0, torch.float8_e4m3fn),
    "e5m2": Float(8, 2, -14, 15, 57344.0, torch.float8_e5m2),
}
