"""Attention on integers, in pieces that stay in a core's cache.

    scores = s_q s_k s (Q - z_q)(K - z_k)^T,  P = round(softmax(scores) / s_p),  y = s_p s_v P (V - z_v)

The products are of integers that float32 holds, and so are their sums as long as they are below 2^24 (heads of up to 258
channels): the order in which they are summed changes nothing. They stay in float32, since kernels of integers want one factor
laid out beforehand, which takes longer than the product. What costs is the way of the scores, four bytes for every pair of
tokens, to memory and back, once for each of the softmax's and the rounding's steps: some rows of them are computed at a time.
"""

import math
from typing import cast

import torch
from torch import Tensor, nn

from qdexp.backends.integer.kernels import Grid, has_zero, is_broken, levels
from qdexp.quant.activations import ActivationQuantizer, elementwise
from qdexp.quant.products import QuantizedAttention

PIECE = 2**17
"""Scores that are computed at a time: half a megabyte."""


class IntegerAttention(QuantizedAttention):
    """Takes calls without mask and dropout, all of whose rows have one grid; others run as in simulated arithmetic."""

    query: ActivationQuantizer
    key: ActivationQuantizer
    value: ActivationQuantizer
    probability: ActivationQuantizer

    def attend(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        attn_mask: Tensor | None = None,
        dropout_p: float = 0.0,
        is_causal: bool = False,
        scale: float | None = None,
        enable_gqa: bool = False,
    ) -> Tensor:
        given = ((query, self.query), (key, self.key), (value, self.value))
        plain = attn_mask is None and not (dropout_p or is_causal or enable_gqa) and query.ndim > 2
        plain = plain and query.shape[:-2] == key.shape[:-2] == value.shape[:-2]
        found = [quantizer.qparams(x) for x, quantizer in given] if plain else []
        if not plain or any(len(one.scale) > 1 for one in found):
            return super().attend(query, key, value, attn_mask, dropout_p, is_causal, scale, enable_gqa)
        grids = [Grid.of(*own, quantizer.scheme) for own, (_, quantizer) in zip(found, given, strict=True)]
        scale = query.shape[-1] ** -0.5 if scale is None else scale
        broken = any(is_broken(x) for x, _ in given)
        scores = math.nan if broken else grids[0].scale * grids[1].scale * scale
        q, k, v = (_centred(x, grid) for (x, _), grid in zip(given, grids, strict=True))
        y = self._pieces(q, k, v, scores) * (grids[2].scale * float(self.probability.scale))
        return y.view(*query.shape[:-1], -1).to(value.dtype)

    def _pieces(self, query: Tensor, key: Tensor, value: Tensor, scale: float) -> Tensor:
        """[heads, tokens, d], whole numbers -> the same, in units of the scales of V and P."""
        heads, tokens, others = len(query), query.shape[1], key.shape[1]
        some, rows = max(1, PIECE // (tokens * others)), max(1, PIECE // others)
        y = query.new_empty(heads, tokens, value.shape[-1])
        inverse, top = float(self.probability.scale.reciprocal()), self._top()
        for head in range(0, heads, some):
            part = slice(head, head + some)
            turned, own = key[part].mT, value[part]
            for row in range(0, tokens, rows):
                places = slice(row, row + rows)
                scores = torch.bmm(query[part, places], turned).mul_(scale)
                probability = scores.softmax(-1).mul_(inverse).round_()
                y[part, places] = torch.bmm(probability if top is None else probability.clamp_(max=top), own)
        return y

    def _top(self) -> float | None:
        """The highest level of a probability, where 1 lies beyond it."""
        top = self.probability.scheme.qmax
        return None if round(1 / float(self.probability.scale)) <= top else top


def to_integer_attention(product: nn.Module) -> bool:
    """Turn the quantizers of a product into integer attention, where they are those of an attention with static grids, or one
    for each group of timesteps, of at most 8 bits, and P has no zero point. Returns whether they are."""
    factors = list(product.children())
    if type(product) is not QuantizedAttention or not all(_is_plain(one) for one in factors):
        return False
    probability = cast(ActivationQuantizer, product.probability)
    if not elementwise(probability) or bool(probability.zero_point.any()):
        return False
    product.__class__ = IntegerAttention
    return True


def _is_plain(quantizer: nn.Module) -> bool:
    if not isinstance(quantizer, ActivationQuantizer) or quantizer.mode != "on":
        return False
    scheme = quantizer.scheme
    return scheme.is_integer and scheme.time != "dynamic" and scheme.bits <= 8 and has_zero(quantizer)


def _centred(x: Tensor, grid: Grid) -> Tensor:
    """The levels of x less their zero point, float32, [heads of all rows, tokens, d]."""
    return levels(x, grid).flatten(0, -3).float().sub_(grid.zero_point).contiguous()
