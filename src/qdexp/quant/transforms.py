"""Transforms: other coordinates for the input channels of a layer, in which its weight and its input are easier to round.

    W x = (W T^-1)(T x)

so that in full precision nothing changes. T is applied to the input at each call, as kernels do that fuse it with rounding; the
weight is rounded as W T^-1. Both members are computed in float32, along the input channels alone: a convolution's padding and
its places in the image do not see them.

    smoothing   T x = x / s, s > 0 for each channel: what is large in some channels of x moves to their weights (SmoothQuant,
                Xiao et al. 2023, arXiv 2211.10438, equations 3 and 4)
    rotation    T x = H D x / sqrt(n) in blocks of n channels, H a Hadamard matrix, D random signs: a value that stands out is
                spread over its block (QuaRot, Ashkboos et al. 2024, arXiv 2404.00456; in groups of channels, for linear layers
                and convolutions: ConvRot, arXiv 2512.03673)
"""

from abc import abstractmethod
from collections.abc import Mapping, Sequence
from math import gcd
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from qdexp.quant.hadamard import additions, has_order, matrices
from qdexp.quant.handing import Exact
from qdexp.quant.packing import pack, packed_bytes, unpack


class Transform(Exact):
    """Other coordinates for the channels of a layer's input: its place among the layer's ``transforms`` is its place in time.

    A member says what it is called in a checkpoint (``kind``), which of its options are kept there (``options``), and which
    numbers (``kept``, ``fill``) in the tensor that all layers share (``tensor``).
    """

    kind: ClassVar[str]
    tensor: ClassVar[str]

    def __init__(self, channels: int, dim: int) -> None:
        """channels: of the input, along its dimension ``dim``."""
        super().__init__()
        self.channels, self.dim = channels, dim

    @abstractmethod
    def forward(self, x: Tensor) -> Tensor:
        """An input of the layer -> T x, of the same shape, dtype and strides."""

    @abstractmethod
    def weight(self, weight: Tensor) -> Tensor:
        """W, [out, channels, ...] -> W T^-1, float32 at least."""

    @abstractmethod
    def restore(self, weight: Tensor) -> Tensor:
        """The inverse of ``weight``."""

    @property
    def options(self) -> dict[str, Any]:
        """The options that are kept beside the numbers, as JSON."""
        return {}

    @abstractmethod
    def kept(self) -> Tensor:
        """The numbers as a checkpoint has them, one dimension, of ``length``."""

    @abstractmethod
    def fill(self, kept: Tensor) -> None:
        """The inverse of ``kept``."""

    @property
    def length(self) -> int:
        """Elements of ``kept``."""
        return self.channels


class Smoothing(Transform):
    """Divides each channel by a factor of its own, of 16 bits."""

    kind = tensor = "smoothing"
    _exact = ("factors",)
    factors: Tensor

    def __init__(self, channels: int, dim: int) -> None:
        super().__init__(channels, dim)
        self.register_buffer("factors", torch.ones(channels), persistent=False)

    @classmethod
    def by(cls, factors: Tensor, dim: int) -> "Smoothing":
        """Make a smoothing by these factors, [channels], positive and finite; they are rounded to bfloat16."""
        made = cls(len(factors), dim).to(factors.device)
        made.fill(factors.to(torch.bfloat16))
        return made

    def forward(self, x: Tensor) -> Tensor:
        return (x / _along(self.factors, self.dim, x.ndim)).to(x.dtype)

    def weight(self, weight: Tensor) -> Tensor:
        return weight * _along(self.factors, 1, weight.ndim)

    def restore(self, weight: Tensor) -> Tensor:
        return weight / _along(self.factors, 1, weight.ndim)

    def kept(self) -> Tensor:
        return self.factors.to(torch.bfloat16)

    def fill(self, kept: Tensor) -> None:
        self.factors.copy_(kept)

    def extra_repr(self) -> str:
        return f"{self.channels} factors"


class Rotation(Transform):
    """An orthogonal matrix along the channels, block-diagonal. Each of ``runs`` is some neighbouring channels, all of which lie
    in blocks of one order: (channels, order)."""

    kind, tensor = "rotation", "signs"
    signs: Tensor

    def __init__(self, runs: Sequence[Sequence[int]], dim: int) -> None:
        """Raises ValueError where there is no Hadamard matrix of an order, or a run is not made of blocks."""
        super().__init__(sum(channels for channels, _ in runs), dim)
        self.runs = [(channels, order) for channels, order in runs]
        self._sizes = [channels for channels, _ in self.runs]
        for channels, order in self.runs:
            if not (has_order(order) and channels > 0 and channels % order == 0):
                raise ValueError(f"a rotation has {channels} channels in blocks of {order}")
        self.register_buffer("signs", torch.ones(self.channels), persistent=False)
        self._factors = {
            order: [f"hadamard_{order}_{number}" for number in range(len(matrices(order)))] for _, order in self.runs
        }
        for order, names in self._factors.items():
            for name, matrix in zip(names, matrices(order), strict=True):
                self.register_buffer(name, matrix.float() / len(matrix) ** 0.5, persistent=False)
        self._exact = tuple(self._buffers)

    @classmethod
    def drawn(cls, runs: Sequence[tuple[int, int]], dim: int, seed: int) -> "Rotation":
        """Draw a rotation with random signs."""
        made = cls(runs, dim)
        generator = torch.Generator().manual_seed(seed)
        made.signs.copy_(2 * torch.randint(2, made.signs.shape, generator=generator) - 1)
        return made

    def forward(self, x: Tensor) -> Tensor:
        return _laid_out(self._rotated(x * _along(self.signs, self.dim, x.ndim), self.dim).to(x.dtype), x)

    def weight(self, weight: Tensor) -> Tensor:
        return _laid_out(self._rotated(weight * _along(self.signs, 1, weight.ndim), 1), weight)

    def restore(self, weight: Tensor) -> Tensor:
        return _laid_out(self._rotated(weight, 1, back=True), weight) * _along(self.signs, 1, weight.ndim)

    def _rotated(self, x: Tensor, dim: int, back: bool = False) -> Tensor:
        """H x / sqrt(n), or H^T x / sqrt(n), block by block."""
        fastest = dim % x.ndim == x.ndim - 1 or not x.is_contiguous()  # else the places of an image are
        places = x.movedim(dim, -1)[..., None] if fastest else x.flatten(2)
        parts = zip(places.split(self._sizes, -2), self.runs, strict=True)
        rotated = torch.cat([self._multiplied(part, order, back) for part, (_, order) in parts], -2)
        return rotated[..., 0].movedim(-1, dim) if fastest else rotated.view_as(x)

    def _multiplied(self, x: Tensor, order: int, back: bool) -> Tensor:
        """[..., channels, places] -> the same. Of a Kronecker product factor by factor: each takes the slowest of the
        dimensions that a block is cut into, and leaves it as the fastest."""
        blocks = x.unflatten(-2, (-1, order))
        for name in self._factors[order]:
            matrix: Tensor = getattr(self, name).to(x.dtype)
            matrix = matrix.mT if back else matrix
            rest = order // len(matrix)
            if x.shape[-1] == 1:
                cut = blocks.flatten(-2).unflatten(-1, (len(matrix), rest))
                blocks = F.linear(cut.mT, matrix).flatten(-2)[..., None]
            else:
                cut = blocks.unflatten(-2, (len(matrix), rest)).flatten(-2)
                # not torch.matmul: whoever counts an attention's products would take it for one
                product: Tensor = torch.ops.aten.matmul.default(matrix, cut)
                blocks = product.unflatten(-1, (rest, -1)).transpose(-3, -2).flatten(-3, -2)
        return blocks.flatten(-3, -2)

    def additions(self, x: Tensor) -> int:
        """The additions of a fast transform of an input: log2 n for each of its values; for a matrix that is no power of two
        its order."""
        return x.numel() // self.channels * sum(channels * additions(order) for channels, order in self.runs)

    @property
    def options(self) -> dict[str, Any]:
        return {"runs": self.runs}

    def kept(self) -> Tensor:
        return pack(self.signs < 0, 1)

    def fill(self, kept: Tensor) -> None:
        self.signs.copy_(1 - 2 * unpack(kept, 1, self.channels))

    @property
    def length(self) -> int:
        return packed_bytes(self.channels, 1)

    def extra_repr(self) -> str:
        return ", ".join(f"{channels} channels in blocks of {order}" for channels, order in self.runs)


KINDS: Mapping[str, type[Transform]] = {kind.kind: kind for kind in (Smoothing, Rotation)}


def to_dict(transform: Transform) -> dict[str, Any]:
    """The transform as a checkpoint's JSON holds it."""
    return {"kind": transform.kind, **transform.options}


def from_dict(values: Mapping[str, Any], channels: int, dim: int) -> Transform:
    """The inverse of ``to_dict``, its numbers still to be filled in. Raises ValueError where it is none of such a layer."""
    if values["kind"] == Smoothing.kind:
        return Smoothing(channels, dim)
    if values["kind"] != Rotation.kind:
        raise ValueError(f"a transform of a layer is of kind {values['kind']!r}")
    numbers = [number for run in values["runs"] for number in run]
    if not all(type(number) is int and 0 < number <= channels for number in numbers) or sum(numbers[::2]) != channels:
        raise ValueError(f"a rotation has runs of {values['runs']} in a layer of {channels} channels")
    return Rotation(values["runs"], dim)


def runs_of(parts: Sequence[int], size: int | None) -> list[tuple[int, int]]:
    """The blocks in which the channels of a layer are rotated, within each of its ``parts``: (channels, order) each.

    size: of the blocks, a power of two, or the largest one below it that divides the part. None: the whole part, if it has a
    Hadamard matrix; else blocks of the largest power of two that divides it.
    """
    return [(part, part if size is None and has_order(part) else gcd(part, size or 2**30)) for part in parts]


def _along(values: Tensor, dim: int, ndim: int) -> Tensor:
    """Values of each channel, laid out to broadcast along dimension ``dim`` of ``ndim``."""
    shape = [1] * ndim
    shape[dim] = -1
    return values.view(shape)


def _laid_out(made: Tensor, like: Tensor) -> Tensor:
    """The tensor in the memory format of ``like``."""
    last = like.ndim == 4 and like.is_contiguous(memory_format=torch.channels_last) and not like.is_contiguous()
    return made.contiguous(memory_format=torch.channels_last if last else torch.contiguous_format)
