"""AdaRound: weight rounding as an optimization.

    w_int = floor(w / s) + h(alpha),  h(alpha) = clamp(1.2 sigmoid(alpha) - 0.1, 0, 1)

alpha starts where h is the fractional part of w / s, so that the start is the weight itself. Between floating point numbers of
few bits h is the share of the gap from the lower one to the next one above. Or it starts from levels found
otherwise: then the choice is between each and the next one towards the weight, and the start near it. The regulariser

    1 - |2 h - 1|^beta,  beta falling

drives h to 0 or 1, and at the end h = [alpha >= 0] (Nagel et al. 2020, arXiv 2004.10568, equations 21 to 24).
"""

import torch
from torch import Tensor, nn

from qdexp.quant.affine import QParams, decode, encode, level_below, next_level, normalized
from qdexp.quant.scheme import Scheme

LOW, HIGH = -0.1, 1.1
LEEWAY = 0.1
"""The largest distance of the start from a level that was found otherwise, in levels: nearly there, and still with a
gradient."""


class SoftRounding(nn.Module):
    """The rounding of one weight while it is learned; `alpha`, of the weight's shape, is its only parameter."""

    floor: Tensor
    gap: Tensor | None
    scale: Tensor
    zero_point: Tensor

    def __init__(self, weight: Tensor, qparams: QParams, scheme: Scheme, codes: Tensor | None = None) -> None:
        """weight: the full-precision one, any strides (kept); codes: of the levels to start from."""
        super().__init__()
        self.scheme = scheme
        scale, zero_point = (scheme.granularity.expand(value, weight.shape) for value in qparams)
        exact = normalized(weight.detach(), scale, scheme)
        if codes is None:
            floor, upper = level_below(exact, scheme), None
            h = exact - floor
        else:
            level = decode(codes, scheme) - zero_point
            upper = level > exact
            floor = torch.where(upper, -next_level(-level, scheme), level).to(exact.dtype)
            h = (exact - level).abs()
        gap = None if scheme.is_integer else next_level(floor, scheme) - floor
        h = h if gap is None else h / gap
        if upper is not None:
            away = h.clamp_max(LEEWAY)
            h = torch.where(upper, 1 - away, away)
        self.register_buffer("floor", floor)
        self.register_buffer("gap", gap)
        self.register_buffer("scale", scale)
        self.register_buffer("zero_point", zero_point)
        self.alpha = nn.Parameter(torch.logit((h - LOW) / (HIGH - LOW)))

    def h(self) -> Tensor:
        """The soft choice between the lower level, 0, and the upper one, 1; of the weight's shape."""
        return (torch.sigmoid(self.alpha) * (HIGH - LOW) + LOW).clamp(0, 1)

    def weight(self, h: Tensor) -> Tensor:
        """The dequantized weight for a choice `h`."""
        return (self._levels(h) - self.zero_point) * self.scale

    def integers(self) -> Tensor:
        """The hard choice: codes of the scheme's dtype, strides of the weight."""
        return encode(self._levels((self.alpha >= 0).float()), self.scheme)

    def _levels(self, h: Tensor) -> Tensor:
        up = h if self.gap is None else h * self.gap
        return (self.floor + up + self.zero_point).clamp(self.scheme.qmin, self.scheme.qmax)


def undecided(h: Tensor, beta: Tensor | float) -> Tensor:
    """The regulariser 1 - |2 h - 1|^beta of every weight: 0 where h is 0 or 1, 1 where it is 1/2."""
    return 1 - (2 * h - 1).abs().pow(beta)
