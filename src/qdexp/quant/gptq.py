"""GPTQ: weight rounding by second-order information, in one pass, towards the full-precision output.

A layer reads x, where the full-precision network, whose layers before it are not rounded, reads x'. A weight V gives

    E |V x - W x'|^2 = tr((V - W*) H (V - W*)^T) + const,    H = E[x x^T],    W* = W + W E[(x' - x) x^T] H^-1

so that W* is what has to be rounded (asymmetric calibration: GPTAQ, Li et al. 2025, arXiv 2504.02692); x and x' are what the
layer reads in its own coordinates, see `transforms`. Where a branch B runs beside it, which reads x as it was before it was
rounded, x°, only W - B is left to V, and W* = W - B + E[(W (x' - x) + B (x - x°)) x^T] H^-1. The columns of W* are rounded one
after another, and what each loses is made good by those that are still free:

    e_i = (w_i - x_hat(w_i)) / U_ii,    w_j -= e_i U_ij for j > i,    U^T U = (H + lambda I)^-1, U upper triangular

(Frantar et al. 2022, arXiv 2210.17323, section 4 and algorithm 1). Columns go by falling H_ii: those that matter most first.
"""

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from qdexp.quant.affine import QParams, encode, round_to_levels
from qdexp.quant.scheme import Scheme

DAMPING = 0.01
"""lambda, as a fraction of the mean of H's diagonal (the same paper, section 4, step 3)."""
CHUNK = 128
"""Columns that are rounded before the error is carried on to the rest."""
SAMPLES = 64
"""Output values a column that moments are taken from, where a layer gives more."""
ROWS = 256
"""The fewest rows that these are from, where there are more: rows differ more than neighbours in one do."""
ELEMENTS = 2**24
"""Numbers of gathered input at a time."""


class InputMoments:
    """Sums over the inputs seen: `total` of x x^T, float32 [groups, columns, columns], and `shift` of W (x' - x) x^T, or with a
    branch (W (x' - x) + B (x - x°)) x^T, float32 [groups, outputs, columns], which is less than (x' - x) x^T: a convolution has
    fewer outputs than columns. x is what one output value reads.

    For a linear layer x has `in_features` columns; for a convolution `in_channels / groups` times the kernel's size. Neighbours
    in an image are much alike: where a row gives more than its share of `SAMPLES` output values a column, some are taken, at
    random. As many rows are needed as give these, `ROWS` at least.
    """

    def __init__(self, layer: Any, rows: int, seed: int, weight: Tensor | None = None, branch: Tensor | None = None) -> None:
        """layer: Linear, Conv1d or Conv2d; rows: of all inputs that there are; seed: of which output values are taken; weight:
        W, or else the layer's; branch: B, if there is one."""
        self.layer, self.rows = layer, rows
        device = layer.weight.device
        self.total = self.shift = torch.zeros((), device=device)
        self._columns = layer.weight[0].numel()
        self._weight = self._matrix(layer.weight if weight is None else weight)
        self._branch = None if branch is None else self._matrix(branch)
        self._generator = torch.Generator(device).manual_seed(seed)

    def _matrix(self, weight: Tensor) -> Tensor:
        """[groups, outputs, columns], float32."""
        return weight.reshape(getattr(self.layer, "groups", 1), -1, self._columns).float()

    def observe(self, x: Tensor, exact: Tensor, unrounded: Tensor | None = None) -> None:
        """Take in an input of the layer: x as it reads it, that of the full-precision layer, and, which a branch reads, x
        before it was rounded; [n, ..., features] or [n, c, ...] each."""
        places, read = self._places(x[:1])
        wanted = SAMPLES * self._columns
        self.rows = min(self.rows, max(ROWS, -(-wanted // len(read))))
        count = min(len(read), -(-wanted // self.rows))
        rows = max(1, ELEMENTS // (count * read.shape[1] * places.shape[2]))
        given = [x, exact, *([] if self._branch is None or unrounded is None else [unrounded])]
        for parts in zip(*(each.split(rows) for each in given), strict=True):
            chosen = self._chosen(len(parts[0]), len(read), count)
            one, same, *before = (self._gather(self._places(each.float())[0], read[chosen]) for each in parts)
            lost = self._weight @ (same - one)
            if self._branch is not None and before:
                lost += self._branch @ (one - before[0])
            self.total = self.total + one @ one.mT
            self.shift = self.shift + lost @ one.mT

    def _chosen(self, rows: int, outputs: int, count: int) -> Tensor:
        """The output values of each row that are taken, int64 [rows, count]."""
        device = self._generator.device
        if count == outputs:
            return torch.arange(outputs, device=device).expand(rows, -1)
        return torch.rand(rows, outputs, generator=self._generator, device=device).topk(count).indices

    def _places(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """The padded input, [n, places, channels], and which of its places each output value reads, int64 [values, kernel]."""
        layer = self.layer
        if isinstance(layer, nn.Linear):
            x = x.unflatten(0, (-1, 1)).flatten(1, -2)
            return x, torch.arange(x.shape[1], device=x.device)[:, None]
        mode = "constant" if layer.padding_mode == "zeros" else layer.padding_mode
        x = F.pad(x, layer._reversed_padding_repeated_twice, mode)
        kernel, dilation, stride = layer.kernel_size, layer.dilation, layer.stride
        if isinstance(layer, nn.Conv1d):
            x, kernel, dilation, stride = x[:, :, None], (1, *kernel), (1, *dilation), (1, *stride)
        numbers = torch.arange(x[0, 0].numel(), dtype=torch.float64, device=x.device).view(1, 1, *x.shape[2:])
        return x.permute(0, 2, 3, 1).flatten(1, 2), F.unfold(numbers, kernel, dilation, 0, stride)[0].mT.long()

    def _gather(self, places: Tensor, read: Tensor) -> Tensor:
        """[groups, columns, output values] of [n, places, channels] and int64 [n, output values, kernel]."""
        row = torch.arange(len(places), device=places.device)[:, None, None]
        found = places[row, read].flatten(0, 1).mT  # [output values, channels, kernel]
        return found.reshape(len(found), -1, self._columns).permute(1, 2, 0)


def gptq(weight: Tensor, qparams: QParams, scheme: Scheme, moments: Tensor, shift: Tensor) -> Tensor:
    """Codes of the weight's shape, dtype `scheme.dtype`. weight: W - B; moments, shift: `total` and `shift` of an
    `InputMoments`."""
    groups, columns, _ = moments.shape
    order = moments.diagonal(dim1=1, dim2=2).argsort(dim=1, descending=True, stable=True)

    def sort(values: Tensor) -> Tensor:
        """Along the last dimension."""
        return values.gather(2, order[:, None].expand_as(values))

    def sorted_columns(values: Tensor) -> Tensor:
        return sort(values.expand_as(weight).reshape(groups, -1, columns).float())

    inverse = _inverse(sort(sort(moments).mT))  # H^T = H
    rows = weight.reshape(groups, -1, columns).double()
    target = (sort(rows) + sort(shift.double()) @ inverse).float()
    factor = torch.linalg.cholesky(inverse, upper=True).float()
    scale, zero_point = (sorted_columns(scheme.granularity.expand(values, weight.shape)) for values in qparams)
    levels = _levels(target, scale, zero_point, factor, scheme)
    placed = torch.empty_like(levels).scatter_(2, order[:, None].expand_as(levels), levels)
    return encode(placed.view(weight.shape), scheme)


def _inverse(moments: Tensor) -> Tensor:
    """(H + lambda I)^-1, float64. Its matrices are the largest of all: none is held for longer than it is needed."""
    exact = moments.double()
    mean = exact.diagonal(dim1=1, dim2=2).mean(1)
    damping = torch.where(mean > 0, DAMPING * mean, 1.0)  # a layer that reads nothing but zeros: nearest rounding
    exact.diagonal(dim1=1, dim2=2).add_(damping[:, None])
    factor = torch.linalg.cholesky(exact)
    del exact
    return torch.cholesky_inverse(factor)


def _levels(weight: Tensor, scale: Tensor, zero_point: Tensor, factor: Tensor, scheme: Scheme) -> Tensor:
    """Levels as floats; all of [groups, rows, columns]. `weight` is used up."""
    levels = torch.empty_like(weight)
    for start in range(0, weight.shape[2], CHUNK):
        stop = min(start + CHUNK, weight.shape[2])
        errors = torch.empty_like(weight[:, :, start:stop])
        for i in range(start, stop):
            s, z, w = scale[:, :, i], zero_point[:, :, i], weight[:, :, i]
            levels[:, :, i] = round_to_levels(w / s, z, scheme)
            error = (w - (levels[:, :, i] - z) * s) / factor[:, i, i, None]
            errors[:, :, i - start] = error
            weight[:, :, i + 1 : stop] -= error[:, :, None] * factor[:, None, i, i + 1 : stop]
        weight[:, :, stop:] -= errors @ factor[:, start:stop, stop:]
    return levels
