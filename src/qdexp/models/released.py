"""Quantized networks as the authors of Q-Diffusion released them (Li et al. 2023, arXiv 2302.04304): state dicts of their code.

    model.LAYER.{weight, bias}                               as they were before quantization, like the norms beside them
    model.LAYER.weight_quantizer.{alpha, delta, zero_point}  w_int = clamp(floor(w / delta) + [alpha >= 0] + z, 0, 2^b - 1)
    model.LAYER.act_quantizer.{delta, zero_point}            of the layer's input
    model.LAYER.{weight, act}_quantizer_0.*                  of the second part of a split shortcut
    model.ATTENTION.act_quantizer_{q, k, v, w}.*             of Q, K, V and the softmax

by the names of the original U-Net, latent diffusion's or DDIM's. All layers have the same bits, the first and the last too. No
key states them: those of the weights follow from their zero points, those of the activations have to be known. Symmetric
activations show in zero points that are all 0. In latent diffusion's attention without context the quantizers lie in
``attention.{qkv,smv}_matmul``; Q and K are rounded there when they have been multiplied by d^(-1/4), d the size of a head,
and the softmax is never symmetric.
"""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

from qdexp import models
from qdexp.config import UNTOUCHED, Model, Quant
from qdexp.errors import UserError
from qdexp.models.compvis import unet_origin
from qdexp.models.names import Origin, levels_of, pixel_name
from qdexp.models.weights import WeightFiles
from qdexp.quant.affine import QParams
from qdexp.quant.attention import quantize_attention
from qdexp.quant.layers import kind_of, to_quantized
from qdexp.quant.network import set_activation_mode
from qdexp.quant.packed import weights
from qdexp.quant.products import ATTENTION, QuantizedAttention
from qdexp.quant.scheme import Granularity, PerChannel, PerTensor, Scheme, Split, Whole

ACT, WEIGHT = ".act_quantizer", ".weight_quantizer"
SCALAR = Origin("")


def check(model: Model, file: Path, quant: Quant) -> None:
    """Raises as ``fill`` does."""
    fill(models.skeleton(model), file, quant)


def fill(network: nn.Module, file: Path, quant: Quant) -> None:
    """Quantizes a network, on the CPU and in place, as in the file: every number is that of the file.

    Raises UserError, one line with the key, where one is missing, left over or of another shape, a scale is not positive, a
    zero point no whole number, or the bits are not those of ``quant``.
    """
    if not isinstance(network, UNet2DModel | UNet2DConditionModel):
        raise UserError(
            f"quantizer.steps.released.file={file}: such files are of U-Nets, not of {type(network).__name__}; change model"
        )
    _Import(network, file, quant).run()


class _Import:
    """One file on its way into one network; ``left`` are the keys that nothing has used yet."""

    def __init__(self, network: nn.Module, file: Path, quant: Quant) -> None:
        self.network, self.quant, self.acts = network, quant, quant.act_bits != UNTOUCHED
        self.option = f"quantizer.steps.released.file={file}"
        found = WeightFiles([file], self.option)
        self.tensors = {key: value for part in found.read(found.shapes) for key, value in part.items()}
        if not any(key.startswith("model.") and WEIGHT in key for key in self.tensors):
            raise UserError(f"{self.option}: it holds no model.*{WEIGHT}.*; give a quantized checkpoint")
        if self.acts and not any(ACT in key for key in self.tensors):
            raise UserError(f"{self.option}: it holds no *{ACT}.*, only weights are quantized; give quant.act_bits={UNTOUCHED}")
        self.left = {key for key in self.tensors if self.acts or ACT not in key}
        points = [key for key in self.left if ACT in key and key.endswith("zero_point") and not key.endswith("_w.zero_point")]
        self.symmetric = all(bool((self.tensors[key] == 0).all()) for key in points)
        self.origins = {name: self._origin(name) for name in network.state_dict()}

    def _origin(self, name: str) -> Origin:
        if "model.temb.dense.0.weight" in self.tensors:
            return Origin(f"model.{pixel_name(name, levels_of(self.network))}")
        origin = unet_origin(name, self.network)
        return replace(origin, key=f"model.{origin.key}")

    @torch.no_grad()
    def run(self) -> None:
        for name, module in list(self.network.named_modules()):
            if kind_of(module) is not None:
                self._layer(module, self.origins[f"{name}.weight"])
        for name, attention in list(self.network.named_modules()) if self.acts else ():
            if isinstance(attention, Attention):
                self._attention(attention, self.origins[f"{name}.to_q.weight"])
        dequantized = weights(self.network)
        for name, value in self.network.state_dict().items():
            if name not in dequantized:
                value.copy_(self._take(self.origins[name], value.shape))
        set_activation_mode(self.network, "on")
        if self.left:
            raise self._wrong(min(self.left), f"has no place in {type(self.network).__name__}")

    def _layer(self, layer: Any, origin: Origin) -> None:
        stem = origin.key.removesuffix(".weight")
        parts = ("", "_0") if f"{stem}{WEIGHT}_0.alpha" in self.tensors else ("",)
        weight = self._take(origin, layer.weight.shape)
        sizes = [weight.shape[1]] if len(parts) == 1 else [self._channels(f"{stem}{WEIGHT}{part}.alpha") for part in parts]
        if sum(sizes) != weight.shape[1]:
            raise self._wrong(f"{stem}{WEIGHT}_0.alpha", f"is not the rest of {weight.shape[1]} input channels")
        pieces = zip(parts, weight.split(sizes, dim=1), strict=True)
        rounded = [self._rounded(piece, replace(origin, key=f"{stem}{WEIGHT}{part}")) for part, piece in pieces]
        scheme = Scheme(self.quant.weight_bits, _granularity(sizes, PerChannel()))
        act = Scheme(self.quant.act_bits, _granularity(sizes, PerTensor()), self.symmetric) if self.acts else None
        quantized: Any = to_quantized(layer, scheme, act)
        quantized.set_weight(torch.cat([integers for integers, _ in rounded], dim=1).to(scheme.dtype),
                             _joined([grid for _, grid in rounded]))  # fmt: skip
        if act is not None:
            grids = [self._grid(replace(SCALAR, key=f"{stem}{ACT}{part}"), 1, act.bits) for part in parts]
            quantized.input_quantizer.set_qparams(_joined(grids))

    def _rounded(self, weight: Tensor, origin: Origin) -> tuple[Tensor, QParams]:
        """The integers of (a part of) a weight [out, in, ...], and their grids [out]."""
        grid = self._grid(origin, len(weight))
        self._check_bits(weight, grid.zero_point, origin.key)
        delta, z = (values.view(-1, *[1] * (weight.ndim - 1)) for values in grid)
        up = self._take(replace(origin, key=f"{origin.key}.alpha"), weight.shape) >= 0
        return (torch.floor(weight / delta) + up + z).clamp_(0, 2**self.quant.weight_bits - 1), grid

    def _check_bits(self, weight: Tensor, zero_point: Tensor, key: str) -> None:
        """However far a range [lo, hi] was shrunk, z = round(-lo / (hi - lo) (2^b - 1)): so b is known."""
        lo, hi = weight.flatten(1).aminmax(dim=1)
        usual = (lo < 0) & (hi > 0)
        levels = zero_point[usual].sum() / (-lo / (hi - lo))[usual].sum()
        bits = round(float(torch.log2(levels + 1))) if usual.any() else self.quant.weight_bits
        if bits != self.quant.weight_bits:
            raise self._wrong(f"{key}.zero_point", f"is that of {bits} bits; give quant.weight_bits={bits}")

    def _attention(self, attention: Attention, origin: Origin) -> None:
        stem, _, projection = origin.key.removesuffix(".weight").rpartition(".")
        joined = projection == "qkv"
        places = ("attention.qkv_matmul", "attention.smv_matmul") if joined else ("", "")
        act = Scheme(self.quant.act_bits, PerTensor(), self.symmetric)
        softmax = Scheme(self.quant.softmax_bits, PerTensor(), self.symmetric and not joined)
        (found,) = quantize_attention(attention, [ATTENTION], act, softmax, known=False).quantized_products
        assert isinstance(found, QuantizedAttention)
        quantizers: dict[str, Any] = {"q": found.query, "k": found.key, "w": found.probability, "v": found.value}
        for letter, quantizer in quantizers.items():
            inner = ".".join(filter(None, (stem, places[letter in "vw"])))
            grid = self._grid(replace(SCALAR, key=f"{inner}{ACT}_{letter}"), 1, quantizer.scheme.bits)
            if joined and letter in "qk":
                grid = QParams(grid.scale / attention.scale**0.5, grid.zero_point)
            quantizer.set_qparams(grid)

    def _grid(self, origin: Origin, groups: int, bits: int | None = None) -> QParams:
        """The grid of the quantizer that ``origin`` names; of ``bits``, where its zero point has to lie on it."""
        found = [self._take(replace(origin, key=f"{origin.key}.{name}"), (groups, 1)) for name in ("delta", "zero_point")]
        scale, zero_point = (values.flatten() for values in found)
        if not ((scale > 0) & scale.isfinite()).all():
            raise self._wrong(f"{origin.key}.delta", "is not positive throughout")
        if not (zero_point == zero_point.round()).all():
            raise self._wrong(f"{origin.key}.zero_point", "is no whole number")
        if bits is not None and not ((zero_point >= 0) & (zero_point < 2**bits)).all():
            raise self._wrong(f"{origin.key}.zero_point", f"is {zero_point.tolist()}, which {bits} bits do not reach")
        return QParams(scale, zero_point.int())

    def _channels(self, key: str) -> int:
        if key not in self.tensors:
            raise self._wrong(key, "is missing")
        shape = self.tensors[key].shape
        if len(shape) < 2:
            raise self._wrong(key, f"has shape {tuple(shape)}, which has no input channels")
        return shape[1]

    def _take(self, origin: Origin, shape: Sequence[int]) -> Tensor:
        if origin.key not in self.tensors:
            raise self._wrong(origin.key, "is missing")
        found, wanted = self.tensors[origin.key], tuple(shape)
        found = found.reshape(1, 1) if found.numel() == 1 and wanted == (1, 1) else found
        if not origin.fits(tuple(found.shape), wanted):
            raise self._wrong(origin.key, f"has shape {tuple(found.shape)}, not one for {wanted}")
        self.left.discard(origin.key)
        return origin.take(found, wanted).float()

    def _wrong(self, key: str, what: str) -> UserError:
        return UserError(f"{self.option}: {key} {what}")


def _granularity(sizes: Sequence[int], whole: Whole) -> Granularity:
    return whole if len(sizes) == 1 else Split(tuple(sizes), whole)


def _joined(grids: Sequence[QParams]) -> QParams:
    return QParams(*(torch.cat(values) for values in zip(*grids, strict=True)))
