"""Quantized modules in ONNX's words: pairs of QuantizeLinear and DequantizeLinear around what each product reads.

    x_hat = DequantizeLinear(QuantizeLinear(x, s, z), s, z),    W_hat = DequantizeLinear(W_int, s, z)

Which grid holds for a call is computed by the network's own code, of operators that torch exports: so grids that follow the
timestep, or the sample, are as good as static ones. The nodes are placeholders, which compute nothing here: a network with them
is there to be exported.

QuantizeLinear divides by s where `affine` multiplies by 1 / s, so that a value in the middle between two levels may go to the
other one. Levels of an activation of fewer than 8 bits (16) lie in integers of 8 (16), and its values are clipped before to
what the outermost levels stand for.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.affine import QParams, qparams_of_rows
from qdexp.quant.granularity import PerGroup, Split, Whole
from qdexp.quant.layers import QuantizedLayer, arithmetic
from qdexp.quant.network import activation_quantizers, quantized_layers
from qdexp.quant.scheme import PerTensor, Scheme

OPSET = 21
"""The version of ONNX: the first with integers of 4 bits, and with groups (``block_size``)."""
BITS = "qdexp.bits"
"""Under which name a node says how many bits its integers have: torch has none of 4 bits."""
_BY_BITS = {(8, False): torch.uint8, (8, True): torch.int8, (16, False): torch.uint16, (16, True): torch.int16}


def stored_bits(scheme: Scheme, narrowest: int = 8) -> int:
    """The bits of the ONNX integers that hold the levels of a grid: at least ``narrowest``."""
    return next(bits for bits in (narrowest, 8, 16) if bits >= scheme.bits)


def to_qdq(network: nn.Module, narrowest: int) -> None:
    """Turn a quantized network, in place, into one that can be exported and no longer be run.

    Args:
        network: In eval mode, in float32; all its schemes can be held, see ``limits``.
        narrowest: Bits of the integers of weights, at least: 4 or 8.
    """
    for name, quantizer in list(activation_quantizers(network)):
        owner, _, own = name.rpartition(".")
        setattr(network.get_submodule(owner), own, Pairs(quantizer))
    for _, layer in list(quantized_layers(network)):
        _place(layer, narrowest)
        if layer.branch is not None:  # its values are those of 16 bits
            layer.branch.up, layer.branch.down = layer.branch.up.bfloat16(), layer.branch.down.bfloat16()


@dataclass(frozen=True)
class Grid:
    """One grid as ONNX has it: for a tensor, along an ``axis``, or in groups (``block``) along it.

    ``bits``, ``signed``: its integers. Those of activations never have a sign, since ONNX Runtime takes it away, and then fails
    where a rounding was moved across a transposition: levels from -128 on are told from 0 on, with a zero point of 128.

    ``alone``: whether no product may be next to its nodes, since ONNX Runtime would fuse both into one that computes something
    else: one with a single scale for the tensor, which fails, or one that rounds a factor that is in full precision.
    """

    bits: int
    signed: bool
    axis: int | None = None
    block: int | None = None
    alone: bool = False

    @property
    def dtype(self) -> torch.dtype:
        """The narrowest of torch's that holds its integers."""
        return _BY_BITS[max(self.bits, 8), self.signed]

    def rounded(self, x: Tensor, qparams: QParams) -> Tensor:
        """Return the tensor after a pair of QuantizeLinear and DequantizeLinear."""
        x = x.unsqueeze(0) if self.alone else x
        levels = self._node("QuantizeLinear", x, qparams, self.dtype)
        x = self._node("DequantizeLinear", levels, qparams, x.dtype)
        return x.squeeze(0) if self.alone else x

    def dequantized(self, codes: Tensor, qparams: QParams) -> Tensor:
        """Return the values of integers; [1, ...] where these are ``alone``."""
        x = self._node("DequantizeLinear", codes, qparams, torch.float32)
        return x.squeeze(0) if self.alone else x

    def _node(self, kind: str, x: Tensor, qparams: QParams, dtype: torch.dtype) -> Tensor:
        along = None if self.axis is None else self.axis + self.alone
        given = {"axis": along, "block_size": self.block}
        attributes: Any = {name: value for name, value in given.items() if value is not None}
        made: Tensor = torch.onnx.ops.symbolic(
            kind, (x, *qparams), attributes, dtype=dtype, shape=x.shape, version=OPSET, metadata_props={BITS: f"{self.bits}"}
        )
        return made


class Pairs(nn.Module):
    """Takes the place of an activation quantizer: a pair for the tensor, or for each of its parts."""

    def __init__(self, quantizer: ActivationQuantizer) -> None:
        super().__init__()
        self.quantizer, self.scheme = quantizer, quantizer.scheme
        self.static = self.scheme.time == "static"
        self.grid = Grid(stored_bits(self.scheme), signed=False, axis=None if self.static else 0, alone=not self.static)
        self.sizes = self.scheme.granularity.sizes if isinstance(self.scheme.granularity, Split) else None
        self.reach = []
        """The least and the largest value of each part, where its grid is static."""
        self.offset = 0 if self.scheme.qmin == 0 else 2 ** (self.grid.bits - 1)
        if self.static:
            for part, (scale, zero_point) in enumerate(zip(quantizer.scale, quantizer.zero_point, strict=True)):
                self.register_buffer(f"scale_{part}", scale.clone())
                self.register_buffer(f"zero_point_{part}", self._kept(zero_point))
                self.reach.append([float(end) for end in self._reach(scale, zero_point)])

    def forward(self, x: Tensor) -> Tensor:
        """x, any shape -> the same shape."""
        parts = self.parts(x)
        return parts[0] if len(parts) == 1 else torch.cat(parts, 1)

    def parts(self, x: Tensor) -> list[Tensor]:
        """The parts of the tensor, each rounded."""
        pieces = (x,) if self.sizes is None else x.split(self.sizes, 1)
        if self.static:
            return [self._static(piece, part) for part, piece in enumerate(pieces)]
        found = qparams_of_rows(x, self.scheme) if self.scheme.time == "dynamic" else self.quantizer.qparams(x)
        grids = (QParams(found.scale[:, part], found.zero_point[:, part]) for part in range(len(pieces)))
        return [self._of_rows(piece, own) for piece, own in zip(pieces, grids, strict=True)]

    def _static(self, x: Tensor, part: int) -> Tensor:
        if self._is_narrower:
            x = x.clamp(*self.reach[part])
        return self.grid.rounded(x, QParams(getattr(self, f"scale_{part}"), getattr(self, f"zero_point_{part}")))

    def _of_rows(self, x: Tensor, qparams: QParams) -> Tensor:
        """One grid for each index along the first dimension of x."""
        if self._is_narrower:
            x = x.clamp(*(end.view(-1, *[1] * (x.ndim - 1)) for end in self._reach(*qparams)))
        return self.grid.rounded(x, QParams(qparams.scale, self._kept(qparams.zero_point)))

    def _kept(self, zero_point: Tensor) -> Tensor:
        """The zero point as ONNX has it."""
        return (zero_point + self.offset).to(self.grid.dtype)

    @property
    def _is_narrower(self) -> bool:
        """Than the integers that hold its levels."""
        return self.scheme.bits < self.grid.bits

    def _reach(self, scale: Tensor, zero_point: Tensor) -> tuple[Tensor, Tensor]:
        """The values of the lowest and the highest level."""
        return scale * (self.scheme.qmin - zero_point), scale * (self.scheme.qmax - zero_point)


class Integers(nn.Module):
    """Part of a weight: its integers, dequantized at the call."""

    codes: Tensor
    scale: Tensor
    zero_point: Tensor

    def __init__(self, codes: Tensor, qparams: QParams, within: Whole, grid: Grid, linear: bool) -> None:
        """within: how the part is quantized; linear: its order shall be [in, out], in which ONNX multiplies matrices."""
        super().__init__()
        axis = None if isinstance(within, PerTensor) else 1 - within.axis if linear else within.axis
        block = within.length(codes.shape[within.axis]) if isinstance(within, PerGroup) else None
        self.grid = replace(grid, axis=axis, block=block)
        scale, zero_point = (_laid_out(values, within, codes.shape) for values in qparams)
        for name, values in {"codes": codes, "scale": scale, "zero_point": zero_point}.items():
            laid_out = values.mT if linear and values.ndim == 2 else values
            laid_out = laid_out.unsqueeze(0) if grid.alone and values.ndim == 2 else laid_out
            self.register_buffer(name, (laid_out if name == "scale" else laid_out.to(grid.dtype)).contiguous())

    def forward(self) -> Tensor:
        """The weight that the integers stand for."""
        return self.grid.dequantized(self.codes, QParams(self.scale, self.zero_point))


def _laid_out(values: Tensor, granularity: Whole, shape: Sequence[int]) -> Tensor:
    """Scales or zero points as ONNX has them: a number for a tensor, [channels], or the tensor's shape with fewer along the
    axis of groups."""
    if isinstance(granularity, PerTensor):
        return values[0]
    if not isinstance(granularity, PerGroup):
        return values
    others = [size for dim, size in enumerate(shape) if dim != granularity.axis]
    pieces = [piece.view(*others, -1) for piece in values.split(granularity.groups(shape))]
    return torch.cat(pieces, -1).movedim(-1, granularity.axis)


class QdqLayer(QuantizedLayer):
    """A quantized layer whose weight is made of ``integers``. One that is quantized in parts multiplies part by part, so that
    each product has one grid for each factor:

        y = W_h * h + W_skip * skip + b
    """

    integers: nn.ModuleList

    def forward(self, input: Tensor, *_: Any, **__: Any) -> Tensor:
        x = self.transformed(input)
        products = [
            self._product(piece, weight, biased=part == 0)
            for part, (piece, weight) in enumerate(zip(self._pieces(x), self._weights(), strict=True))
        ]
        y = sum(products[1:], products[0])
        return y if self.branch is None else y + self.branch(x, self)

    def _pieces(self, x: Tensor) -> Sequence[Tensor]:
        own = self.input_quantizer
        if self.parts is None:
            return [own(x)]
        if isinstance(own, Pairs) and own.sizes == self.parts:
            return own.parts(x)
        rounded: Tensor = own(x)
        return rounded.split(self.parts, 1)

    def _weights(self) -> Sequence[Tensor]:
        made: Sequence[Tensor] = [cast(Integers, one)() for one in self.integers] or [self._laid_out(self.multiplied_weight())]
        return made[0].split(self.parts, 1) if self.parts and len(made) == 1 else made

    def _laid_out(self, weight: Tensor) -> Tensor:
        return weight.mT if isinstance(self, nn.Linear) else weight

    def _product(self, x: Tensor, weight: Tensor, biased: bool) -> Tensor:
        if not isinstance(self, nn.Linear):
            return arithmetic(self.kind, self, x, weight, biased=biased)
        y: Tensor = torch.ops.aten.matmul.default(x, weight)  # not torch.matmul: an attention would take it for its own
        return y if self.bias is None else y + self.bias


_classes: dict[type[QuantizedLayer], type[QdqLayer]] = {}


def _qdq_class(own: type[QuantizedLayer]) -> type[QdqLayer]:
    if own not in _classes:
        _classes[own] = type(f"Qdq{own.__name__}", (QdqLayer, own), {})
    return _classes[own]


def _place(layer: QuantizedLayer, narrowest: int) -> None:
    """Give a layer its integers, and the forward that multiplies them."""
    layer.__class__ = _qdq_class(type(layer))
    one = cast(QdqLayer, layer)
    one.integers = nn.ModuleList()
    scheme, codes, qparams = layer.weight_scheme, layer.weight_int, layer.weight_qparams
    if scheme is None:
        return
    assert codes is not None and qparams is not None
    granularity, linear = scheme.granularity, isinstance(layer, nn.Linear)
    within, sizes = (granularity.within, granularity.sizes) if isinstance(granularity, Split) else (granularity, None)
    parts = codes.split(sizes, 1) if sizes else (codes,)
    counts = [sum(within.groups(part.shape)) for part in parts]
    grids = zip(*(values.split(counts) for values in qparams), strict=True)
    bits, reads = stored_bits(scheme, narrowest), layer.input_quantizer
    paired = isinstance(reads, Pairs) and reads.static and reads.grid.bits == 8
    fused = isinstance(within, PerGroup) and bits == 8 if paired else True
    kept = Grid(bits, scheme.symmetric, alone=linear and fused)
    one.integers.extend(Integers(part, QParams(*grid), within, kept, linear) for part, grid in zip(parts, grids, strict=True))
