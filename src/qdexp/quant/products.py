"""Products of two activations, each factor with a quantizer of its own: attention's Q K^T and P V, fused or by hand.

P lies in [0, 1], so its grid is known: unsigned, z = 0, scale 1 / (2^b - 1); a network that was quantized elsewhere may have
another.

Scores and P of all heads and rows at once would take most of a GPU's memory (0.5 GB a row and tensor in Stable Diffusion 1 at
64 x 64 latents): they are computed in slices of heads and rows, and where gradients are needed once more on the way back.
"""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from qdexp.quant.activations import elementwise, quantizer_or_identity
from qdexp.quant.formats import along
from qdexp.quant.scheme import Scheme

FUSED = F.scaled_dot_product_attention
PRODUCTS: Mapping[Any, tuple[int, tuple[str, str]]] = {
    FUSED: (0, ("query", "key")),
    **dict.fromkeys((torch.matmul, torch.linalg.matmul, Tensor.matmul), (0, ("input", "other"))),
    **dict.fromkeys((Tensor.__matmul__, Tensor.__rmatmul__), (0, ("self", "other"))),
    **dict.fromkeys((torch.mm, torch.bmm, Tensor.mm, Tensor.bmm), (0, ("input", "mat2"))),
    **dict.fromkeys((torch.baddbmm, Tensor.baddbmm), (1, ("batch1", "batch2"))),
    torch.einsum: (1, ("", "")),
}
"""The functions that multiply two tensors, the place of the first among their arguments, and the names of both."""

ACT, PROBABILITY = "act", "probability"
ATTENTION = ("attention",)
Product = tuple[str, ...]
"""The kind of a site's product: ``ATTENTION`` by torch's fused attention, or the kinds of both factors; empty: nothing that is
quantized here, such as a product with a weight."""

LEFT, RIGHT = -1, -2
"""The dimensions of the factors of a matrix product over which it sums."""

SLICE = 2**28
"""Bytes of scores, in float32, that are computed at once. The kernels chosen, and so the last bits, may depend on it."""


def factors_of(func: Any, args: Any, kwargs: Any) -> list[Tensor]:
    """The factors of a product, as they were given."""
    first, names = PRODUCTS[func]
    if func is torch.einsum:
        return list(args[1] if isinstance(args[1], list | tuple) else args[1:])
    return [kwargs[name] if name in kwargs else args[first + place] for place, name in enumerate(names)]


def _exchanged(func: Any, args: Any, kwargs: Any, factors: Sequence[Tensor]) -> tuple[Sequence[Any], Mapping[str, Any]]:
    """The arguments with other factors."""
    first, names = PRODUCTS[func]
    if func is torch.einsum:
        return [args[0], *factors], kwargs
    args, kwargs = list(args), dict(kwargs)
    for place, (name, factor) in enumerate(zip(names, factors, strict=True)):
        if name in kwargs:
            kwargs[name] = factor
        else:
            args[first + place] = factor
    return args, kwargs


class QuantizedProduct(nn.Module):
    """A product written by hand, with a quantizer for each factor: ``left`` and ``right``."""

    def __init__(self, kinds: Product, act: Scheme | None, softmax: Scheme | None, known: bool) -> None:
        super().__init__()
        axes = zip(kinds, (LEFT, RIGHT), strict=True)
        self.left, self.right = (_quantizer(kind, act, softmax, known, axis) for kind, axis in axes)

    def multiply(self, func: Any, args: Any, kwargs: Any) -> Any:
        left, right = factors_of(func, args, kwargs)
        if func is torch.einsum:  # to its quantizers, which may know groups, each factor looks as to a matrix product
            one, other = _summed(args[0])
            left = self.left(left.movedim(one, LEFT)).movedim(LEFT, one)
            right = self.right(right.movedim(other, RIGHT)).movedim(RIGHT, other)
        else:
            left, right = self.left(left), self.right(right)
        args, kwargs = _exchanged(func, args, kwargs, (left, right))
        return func(*args, **kwargs)


class QuantizedAttention(nn.Module):
    """Torch's fused attention with the softmax in the open: Q, K, V and P each pass a quantizer."""

    def __init__(self, act: Scheme | None, softmax: Scheme | None, known: bool) -> None:
        super().__init__()
        self.query, self.key, self.value = (_quantizer(ACT, act, softmax, known, axis) for axis in (LEFT, LEFT, RIGHT))
        self.probability = _quantizer(PROBABILITY, act, softmax, known, LEFT)

    def multiply(self, _: Any, args: Any, kwargs: Any) -> Tensor:
        return self.attend(*args, **kwargs)

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
        """Compute attention as ``torch.nn.functional.scaled_dot_product_attention`` does: [..., heads, tokens, d] -> the same
        shape."""
        query, key, value = self.query(query), self.key(key), self.value(value)
        if enable_gqa:
            key, value = (x.repeat_interleave(query.shape[-3] // x.shape[-3], -3) for x in (key, value))
        size = query.shape[-2], key.shape[-2]
        if is_causal:
            attn_mask = torch.ones(size, dtype=torch.bool, device=query.device).tril()
        run = partial(self._attended, dropout=dropout_p, scale=query.shape[-1] ** -0.5 if scale is None else scale)
        given = [query, key, value, *([] if attn_mask is None else [attn_mask])]
        lead = torch.broadcast_shapes(*(x.shape[:-2] for x in given))
        at_once = max(1, SLICE // (4 * math.prod(size)))
        if torch.compiler.is_exporting():  # how many slices there are depends on the batch, which a graph does not know
            return run(*given)
        if at_once >= math.prod(lead) or not elementwise(self.probability):
            return run(*given)
        if torch.is_grad_enabled():
            run = partial(checkpoint, run, use_reentrant=False, preserve_rng_state=dropout_p > 0)
        parts = [x.expand(*lead, *x.shape[-2:]).flatten(0, -3).split(at_once) for x in given]
        return torch.cat([run(*part) for part in zip(*parts, strict=True)]).unflatten(0, lead)

    def _attended(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, dropout: float, scale: float
    ) -> Tensor:
        probability = _softmax(query @ key.transpose(-1, -2), scale, mask).to(value.dtype)
        if dropout:
            probability = F.dropout(probability, dropout)
        probability = self.probability(probability)  # the one before goes
        return probability @ value


def _softmax(products: Tensor, scale: float, mask: Tensor | None) -> Tensor:
    """The softmax as in fused kernels: in float32 at least; a query that may attend to nothing attends with zeros. The products
    are overwritten."""
    scores, precise = products.mul_(scale), torch.promote_types(products.dtype, torch.float32)
    if mask is None:
        return scores.softmax(-1, precise)
    return torch._safe_softmax(
        scores.masked_fill(~mask, -torch.inf) if mask.dtype == torch.bool else scores + mask, -1, precise
    )


def _summed(equation: str) -> tuple[int, int]:
    """The dimension of each of two factors over which an einsum sums; of several the last one, of none the usual one."""
    terms, _, result = equation.replace(" ", "").partition("->")
    left, right = terms.split(",")
    letters = [one for one in left if one.isalpha() and one in right and (one not in result or not result)]
    return (_place(left, letters[-1]), _place(right, letters[-1])) if letters else (LEFT, RIGHT)


def _place(term: str, letter: str) -> int:
    """The dimension of a letter, from the end where dimensions without letters lie before it."""
    place = term.index(letter)
    return place - len(term) if "." in term[:place] else place


def _quantizer(kind: str, act: Scheme | None, softmax: Scheme | None, known: bool, axis: int) -> nn.Module:
    """``known``: P has the grid of [0, 1]; else one that is set like the others. ``axis``: that over which its product sums."""
    if kind == ACT:
        return quantizer_or_identity(along(act, axis))
    return quantizer_or_identity(softmax, fixed_range=(0.0, 1.0) if known else None)
