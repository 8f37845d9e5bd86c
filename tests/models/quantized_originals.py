"""Q-Diffusion's released code in small: the original networks with its quantizers in their places, under its names.

``quantized(unet, batch, ...)`` gives a network whose ``state_dict()`` is what the authors saved, and which computes as theirs:

    weights      (clamp(floor(w / delta) + [alpha >= 0] + z, 0, 2^b - 1) - z) delta
    activations  (clamp(round(x / delta) + z, low, high) - z) delta
"""

import math
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from originals import CrossAttention, OriginalUNet, SelfAttention
from pixel_originals import PixelAttention
from torch import Tensor, nn


class Act(nn.Module):
    """Its grid is that of the first tensor it sees, as learning might have moved it; symmetric ones reach from -2^(b-1)."""

    low: int
    high: int

    def __init__(self, bits: int, symmetric: bool = False, positive: bool = False) -> None:
        super().__init__()
        self.symmetric, self.positive = symmetric, positive
        self.low, self.high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if symmetric else (0, 2**bits - 1)

    def forward(self, x: Tensor) -> Tensor:
        if not hasattr(self, "delta"):
            low, high = min(x.min().item(), 0), max(x.max().item(), 0)
            delta = max(-low, high) / self.high if self.symmetric else (high - low) / self.high
            self.delta = nn.Parameter(torch.tensor(delta * 0.97))
            zero_point = 0 if self.symmetric or self.positive else round(-low / delta)
            self.zero_point = nn.Parameter(torch.tensor(float(zero_point)))
        x_int = torch.clamp(torch.round(x / self.delta) + self.zero_point, self.low, self.high)
        return (x_int - self.zero_point) * self.delta


class Rounding(nn.Module):
    """Of weights [out, ...]: ranges min to max shrunk by ``shrink``, alphas drawn about where AdaRound begins."""

    def __init__(self, weight: Tensor, bits: int, shrink: float) -> None:
        super().__init__()
        self.levels, shape = 2**bits - 1, (-1, *[1] * (weight.ndim - 1))
        low, high = shrink * weight.flatten(1).amin(1), shrink * weight.flatten(1).amax(1)
        delta = (high - low) / self.levels
        self.delta = nn.Parameter(delta.view(shape))
        self.zero_point = nn.Parameter(torch.round(-low / delta).view(shape))
        rest = weight / self.delta - torch.floor(weight / self.delta)
        self.alpha = nn.Parameter(rest - 0.5 + 0.2 * torch.randn_like(rest))

    def forward(self, weight: Tensor) -> Tensor:
        delta, zero_point = self.delta.float(), self.zero_point.float()  # the precision of the checkpoint, whatever x has
        x_int = torch.floor(weight.float() / delta) + (self.alpha >= 0).float()
        return ((torch.clamp(x_int + zero_point, 0, self.levels) - zero_point) * delta).to(weight.dtype)


class Layer(nn.Module):
    """A convolution or linear layer; ``split``: where its input's second part begins, 0 for none."""

    def __init__(self, layer: Any, bits: int, act: Any, split: int, shrink: float) -> None:
        super().__init__()
        self.weight, self.split = layer.weight, split
        self.bias = layer.bias
        self.call = F.linear if isinstance(layer, nn.Linear) else F.conv1d if isinstance(layer, nn.Conv1d) else F.conv2d
        self.options = {} if isinstance(layer, nn.Linear) else {"stride": layer.stride, "padding": layer.padding}
        first, second = self._parts(self.weight)
        self.weight_quantizer, self.act_quantizer = Rounding(first, bits, shrink), act()
        if split:
            self.weight_quantizer_0, self.act_quantizer_0 = Rounding(second, bits, shrink), act()

    def _parts(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return (x[:, : self.split], x[:, self.split :]) if self.split else (x, x)

    def forward(self, x: Tensor) -> Tensor:
        if not self.split:
            return self.call(self.act_quantizer(x), self.weight_quantizer(self.weight), self.bias, **self.options)
        (x_0, x_1), (w_0, w_1) = self._parts(x), self._parts(self.weight)
        x = torch.cat([self.act_quantizer(x_0), self.act_quantizer_0(x_1)], dim=1)
        weight = torch.cat([self.weight_quantizer(w_0), self.weight_quantizer_0(w_1)], dim=1)
        return self.call(x, weight, self.bias, **self.options)


def _self_attention(module: Any, x: Tensor) -> Tensor:
    flat, heads = x.flatten(2), module.heads
    q, k, v = module.qkv(module.norm(flat)).unflatten(1, (heads, 3, -1)).unbind(2)  # [n, heads, d, tokens]
    scale, qk, smv = 1 / math.sqrt(math.sqrt(q.shape[2])), module.attention.qkv_matmul, module.attention.smv_matmul
    weight = qk.act_quantizer_q(q * scale).mT @ qk.act_quantizer_k(k * scale)
    weight = smv.act_quantizer_w(torch.softmax(weight, dim=-1))
    return (flat + module.proj_out((smv.act_quantizer_v(v) @ weight.mT).flatten(1, 2))).view_as(x)


def _cross_attention(module: Any, x: Tensor, context: Tensor) -> Tensor:
    q, k, v = (y.unflatten(-1, (module.heads, -1)).transpose(1, 2)
               for y in (module.to_q(x), module.to_k(context), module.to_v(context)))  # fmt: skip
    weight = module.act_quantizer_q(q) @ module.act_quantizer_k(k).mT / math.sqrt(q.shape[-1])
    weight = module.act_quantizer_w(torch.softmax(weight, dim=-1))
    return module.to_out((weight @ module.act_quantizer_v(v)).transpose(1, 2).flatten(2))


def _pixel_attention(module: Any, x: Tensor) -> Tensor:
    h = module.norm(x)
    q, k, v = (layer(h).flatten(2) for layer in (module.q, module.k, module.v))
    weight = module.act_quantizer_q(q).mT @ module.act_quantizer_k(k) * q.shape[1] ** -0.5
    weight = module.act_quantizer_w(torch.softmax(weight, dim=-1))
    return x + module.proj_out((module.act_quantizer_v(v) @ weight.mT).view_as(x))


ATTENTION: dict[type[nn.Module], Any] = {
    SelfAttention: _self_attention,
    CrossAttention: _cross_attention,
    PixelAttention: _pixel_attention,
}


def quantized(
    unet: nn.Module,
    batch: tuple[Tensor, ...],
    bits: int = 4,
    act_bits: int = 8,
    softmax_bits: int = 8,
    *,
    symmetric: bool = False,
    split: bool = False,
    shrink: float = 1.0,
) -> Any:
    """``unet`` with quantizers in place, their activation grids those of one pass over ``batch``."""
    borders = _borders(unet, batch) if split else {}

    def act(bits: int = act_bits, signed: bool = symmetric, **options: bool) -> Act:
        return Act(bits, signed, **options)

    for name, module in list(unet.named_modules()):
        if type(module) in ATTENTION:
            _add_products(module, act, softmax_bits, symmetric)
        if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d):
            parent, _, own = name.rpartition(".")
            setattr(unet.get_submodule(parent), own, Layer(module, bits, act, borders.get(name, 0), shrink))
    with torch.no_grad():
        unet.eval().double()(*(part.double() if part.is_floating_point() else part for part in batch))
    return unet.float()


def _add_products(module: Any, act: Any, softmax_bits: int, symmetric: bool) -> None:
    joined = isinstance(module, SelfAttention)
    qk: Any = nn.Module() if joined else module
    smv: Any = nn.Module() if joined else module
    if joined:
        module.attention = nn.Module()
        module.attention.qkv_matmul, module.attention.smv_matmul = qk, smv
    qk.act_quantizer_q, qk.act_quantizer_k, smv.act_quantizer_v = act(), act(), act()
    smv.act_quantizer_w = act(softmax_bits, symmetric and not joined, positive=True)
    module.forward = ATTENTION[type(module)].__get__(module)


def _borders(unet: nn.Module, batch: tuple[Tensor, ...]) -> dict[str, int]:
    """The names of the up path's shortcut convolutions, and how many channels of their inputs are deep features."""
    widths: list[int] = []
    cat = torch.cat

    def seen(tensors: list[Tensor], dim: int = 0) -> Tensor:
        if len(tensors) == 2 and tensors[0].ndim == 4 and dim == 1:
            widths.append(tensors[0].shape[1])
        return cat(tensors, dim=dim)

    with mock.patch("torch.cat", seen), torch.no_grad():
        unet(*batch)
    latent = isinstance(unet, OriginalUNet)
    blocks: list[str] = []
    if latent:
        blocks = [f"output_blocks.{number}.0.skip_connection" for number in range(len(widths))]
    else:
        levels: Any = unet.up
        blocks = [f"up.{level}.block.{index}.nin_shortcut"
                  for level in reversed(range(len(levels))) for index in range(len(levels[level].block))]  # fmt: skip
    return dict(zip(blocks, widths, strict=True))
