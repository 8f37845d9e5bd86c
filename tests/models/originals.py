"""The U-Net of latent diffusion written down again, small and slow, with the names of the original checkpoints.

Written from the paper's and the original's arithmetic, not from diffusers' classes, which it is compared with.
"""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn


def restless(network: nn.Module) -> Any:
    """``network`` with random numbers throughout: norms and biases must matter, and so must layers that begin at zero."""
    for value in network.parameters():
        nn.init.normal_(value, mean=0.5 if value.ndim == 1 else 0, std=0.5 if value.ndim == 1 else value[0].numel() ** -0.5)
    return network


def sinusoid(t: Tensor, width: int) -> Tensor:
    """[n] -> [n, width]: cosines, then sines, of frequencies 10000^(-i / half)."""
    half = width // 2
    angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half).float() / half)
    return torch.cat([angles.cos(), angles.sin()], dim=1)


class Residual(nn.Module):
    """norm, silu, (resampling), convolution; the time's scale and shift, or shift; norm, silu, convolution."""

    def __init__(self, width: int, time: int, out: int, film: bool = False, resample: float = 1) -> None:
        super().__init__()
        self.film, self.resample = film, resample
        self.in_layers = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, out, 3, padding=1))
        self.emb_layers = nn.Sequential(nn.SiLU(), nn.Linear(time, 2 * out if film else out))
        self.out_layers = nn.Sequential(nn.GroupNorm(32, out), nn.SiLU(), nn.Dropout(0.1), nn.Conv2d(out, out, 3, padding=1))
        self.skip_connection = nn.Conv2d(width, out, 1) if width != out else nn.Identity()

    def _resampled(self, x: Tensor) -> Tensor:
        if self.resample == 1:
            return x
        return F.avg_pool2d(x, 2) if self.resample < 1 else F.interpolate(x, scale_factor=2, mode="nearest")

    def forward(self, x: Tensor, time: Tensor) -> Tensor:
        norm, silu, conv = self.in_layers
        h = conv(self._resampled(silu(norm(x))))
        shift = self.emb_layers(time)[:, :, None, None]
        norm, silu, _, conv = self.out_layers
        if self.film:
            scale, shift = shift.chunk(2, dim=1)
            h = norm(h) * (1 + scale) + shift
        else:
            h = norm(h + shift)
        return self.skip_connection(self._resampled(x)) + conv(silu(h))


class SelfAttention(nn.Module):
    """q, k and v of head 0 first, then those of head 1, and so on."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.GroupNorm(32, width)
        self.qkv = nn.Conv1d(width, 3 * width, 1)
        self.proj_out = nn.Conv1d(width, width, 1)

    def forward(self, x: Tensor) -> Tensor:
        flat = x.flatten(2)
        answers = []
        for head in self.qkv(self.norm(flat)).chunk(self.heads, dim=1):
            q, k, v = head.chunk(3, dim=1)
            weight = torch.softmax(torch.einsum("nct,ncs->nts", q, k) / math.sqrt(q.shape[1]), dim=-1)
            answers.append(torch.einsum("nts,ncs->nct", weight, v))
        return (flat + self.proj_out(torch.cat(answers, dim=1))).view_as(x)


class CrossAttention(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.to_q = nn.Linear(width, width, bias=False)
        self.to_k = nn.Linear(context, width, bias=False)
        self.to_v = nn.Linear(context, width, bias=False)
        self.to_out = nn.Sequential(nn.Linear(width, width), nn.Dropout(0.0))

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        parts = zip(*(y.chunk(self.heads, -1) for y in (self.to_q(x), self.to_k(context), self.to_v(context))), strict=True)
        answers = [torch.softmax(q @ k.mT / math.sqrt(q.shape[-1]), -1) @ v for q, k, v in parts]
        return self.to_out(torch.cat(answers, -1))


class Gate(nn.Module):
    def __init__(self, width: int, out: int) -> None:
        super().__init__()
        self.proj = nn.Linear(width, 2 * out)

    def forward(self, x: Tensor) -> Tensor:
        x, gate = self.proj(x).chunk(2, -1)
        return x * F.gelu(gate)


class TransformerBlock(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.attn1, self.attn2 = CrossAttention(width, width, heads), CrossAttention(width, context, heads)
        self.ff: Any = nn.Module()
        self.ff.net = nn.Sequential(Gate(width, 4 * width), nn.Dropout(0.0), nn.Linear(4 * width, width))
        self.norm1, self.norm2, self.norm3 = nn.LayerNorm(width), nn.LayerNorm(width), nn.LayerNorm(width)

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        x = x + self.attn1(self.norm1(x), self.norm1(x))
        x = x + self.attn2(self.norm2(x), context)
        return x + self.ff.net(self.norm3(x))


class SpatialTransformer(nn.Module):
    def __init__(self, width: int, context: int, heads: int) -> None:
        super().__init__()
        self.norm = nn.GroupNorm(32, width, eps=1e-6)
        self.proj_in, self.proj_out = nn.Conv2d(width, width, 1), nn.Conv2d(width, width, 1)
        self.transformer_blocks = nn.ModuleList([TransformerBlock(width, context, heads)])

    def forward(self, x: Tensor, context: Tensor) -> Tensor:
        tokens = self.proj_in(self.norm(x)).flatten(2).mT
        tokens = self.transformer_blocks[0](tokens, context)
        return x + self.proj_out(tokens.mT.reshape(x.shape))


class Down(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.op = nn.Conv2d(width, width, 3, stride=2, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.op(x)


class Up(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.interpolate(x, scale_factor=2, mode="nearest"))


class OriginalUNet(nn.Module):
    """heads: their number; head_width: their size, in place of it. context: its width, where attention has one."""

    def __init__(
        self,
        channels: int,
        base: int,
        mult: Sequence[int],
        attends: Sequence[int],
        heads: int = 1,
        head_width: int | None = None,
        film: bool = False,
        context: int | None = None,
        layers: int = 2,
    ) -> None:
        super().__init__()
        self.base, time = base, 4 * base
        self.time_embed = nn.Sequential(nn.Linear(base, time), nn.SiLU(), nn.Linear(time, time))

        def attention(width: int) -> nn.Module:
            count = heads if head_width is None else width // head_width
            return SelfAttention(width, count) if context is None else SpatialTransformer(width, context, count)

        def level(width: int, out: int, factor: int) -> list[nn.Module]:
            return [Residual(width, time, out, film), *([attention(out)] if factor in attends else [])]

        self.input_blocks = nn.ModuleList([nn.ModuleList([nn.Conv2d(channels, base, 3, padding=1)])])
        widths, width, factor = [base], base, 1
        for number, times in enumerate(mult):
            for _ in range(layers):
                self.input_blocks.append(nn.ModuleList(level(width, times * base, factor)))
                width = times * base
                widths.append(width)
            if number < len(mult) - 1:
                self.input_blocks.append(nn.ModuleList([Residual(width, time, width, film, 0.5) if film else Down(width)]))
                widths.append(width)
                factor *= 2
        ends = [Residual(width, time, width, film) for _ in range(2)]
        self.middle_block = nn.ModuleList([ends[0], attention(width), ends[1]])
        self.output_blocks = nn.ModuleList()
        for number, times in reversed(list(enumerate(mult))):
            for index in range(layers + 1):
                parts = level(width + widths.pop(), times * base, factor)
                width = times * base
                if number and index == layers:
                    parts.append(Residual(width, time, width, film, 2) if film else Up(width))
                    factor //= 2
                self.output_blocks.append(nn.ModuleList(parts))
        self.out = nn.Sequential(nn.GroupNorm(32, width), nn.SiLU(), nn.Conv2d(width, channels, 3, padding=1))

    def forward(self, x: Tensor, t: Tensor, context: Tensor | None = None) -> Tensor:
        time = self.time_embed(sinusoid(t, self.base).to(x.dtype))

        def run(parts: Any, x: Tensor) -> Tensor:
            for part in parts:
                extra = {Residual: (time,), SpatialTransformer: (context,)}.get(type(part), ())
                x = part(x, *extra)
            return x

        kept = []
        for parts in self.input_blocks:
            x = run(parts, x)
            kept.append(x)
        x = run(self.middle_block, x)
        for parts in self.output_blocks:
            x = run(parts, torch.cat([x, kept.pop()], dim=1))
        return self.out(x)
