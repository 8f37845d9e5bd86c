"""The U-Net of DDPM and the first stage of latent diffusion, written down again like those of `originals`."""

import math
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from originals import Up
from torch import Tensor, nn


def norm(width: int) -> nn.Module:
    return nn.GroupNorm(32, width, eps=1e-6)


class PixelResidual(nn.Module):
    """time: the width of the time's embedding, where there is one."""

    def __init__(self, width: int, out: int, time: int | None = None) -> None:
        super().__init__()
        self.norm1, self.conv1 = norm(width), nn.Conv2d(width, out, 3, padding=1)
        if time is not None:
            self.temb_proj = nn.Linear(time, out)
        self.norm2, self.conv2 = norm(out), nn.Conv2d(out, out, 3, padding=1)
        if width != out:
            self.nin_shortcut = nn.Conv2d(width, out, 1)

    def forward(self, x: Tensor, time: Tensor | None = None) -> Tensor:
        h = self.conv1(F.silu(self.norm1(x)))
        if time is not None:
            h = h + self.temb_proj(F.silu(time))[:, :, None, None]
        h = self.conv2(F.silu(self.norm2(h)))
        return h + (self.nin_shortcut(x) if hasattr(self, "nin_shortcut") else x)


class PixelAttention(nn.Module):
    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = norm(width)
        self.q, self.k, self.v, self.proj_out = (nn.Conv2d(width, width, 1) for _ in range(4))

    def forward(self, x: Tensor) -> Tensor:
        h = self.norm(x)
        q, k, v = (layer(h).flatten(2) for layer in (self.q, self.k, self.v))
        weight = torch.softmax(torch.einsum("nct,ncs->nts", q, k) * q.shape[1] ** -0.5, dim=-1)
        return x + self.proj_out(torch.einsum("nts,ncs->nct", weight, v).view_as(x))


class Shrink(nn.Module):
    """Padded on the right and at the bottom only."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(width, width, 3, stride=2)

    def forward(self, x: Tensor) -> Tensor:
        return self.conv(F.pad(x, (0, 1, 0, 1)))


def middle(width: int, time: int | None = None) -> Any:
    mid: Any = nn.Module()
    mid.block_1, mid.attn_1 = PixelResidual(width, width, time), PixelAttention(width)
    mid.block_2 = PixelResidual(width, width, time)
    return mid


class OriginalPixelUNet(nn.Module):
    """The U-Net of DDPM and DDIM. attends: the levels with attention, 0 the image's own resolution."""

    def __init__(self, channels: int, base: int, mult: Sequence[int], attends: Sequence[int], layers: int = 2) -> None:
        super().__init__()
        self.base, time = base, 4 * base
        self.temb: Any = nn.Module()
        self.temb.dense = nn.ModuleList([nn.Linear(base, time), nn.Linear(time, time)])
        self.conv_in = nn.Conv2d(channels, base, 3, padding=1)
        self.down: Any = nn.ModuleList()
        widths, width = [base], base
        for number, times in enumerate(mult):
            ins, width = [width] + [times * base] * (layers - 1), times * base
            level = self._level(ins, width, time, number in attends)
            widths += [width] * layers
            if number < len(mult) - 1:
                level.downsample = Shrink(width)
                widths.append(width)
            self.down.append(level)
        self.mid: Any = middle(width, time)
        self.up: Any = nn.ModuleList()
        for number, times in reversed(list(enumerate(mult))):
            ins = [(times * base if index else width) + widths.pop() for index in range(layers + 1)]
            width = times * base
            level = self._level(ins, width, time, number in attends)
            if number:
                level.upsample = Up(width)
            self.up.insert(0, level)
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, channels, 3, padding=1)

    @staticmethod
    def _level(ins: Sequence[int], out: int, time: int, attends: bool) -> Any:
        level: Any = nn.Module()
        level.block = nn.ModuleList([PixelResidual(width, out, time) for width in ins])
        level.attn = nn.ModuleList([PixelAttention(out) for _ in ins] if attends else [])
        return level

    def forward(self, x: Tensor, t: Tensor) -> Tensor:
        half = self.base // 2  # here sines come first, and the last frequency is 1 / 10000
        angles = t[:, None].float() * torch.exp(-math.log(10000) * torch.arange(half).float() / (half - 1))
        first, second = self.temb.dense
        time = second(F.silu(first(torch.cat([angles.sin(), angles.cos()], dim=1).to(x.dtype))))

        def run(level: Any, index: int, x: Tensor) -> Tensor:
            x = level.block[index](x, time)
            return level.attn[index](x) if level.attn else x

        kept = [self.conv_in(x)]
        for level in self.down:
            for index in range(len(level.block)):
                kept.append(run(level, index, kept[-1]))
            if hasattr(level, "downsample"):
                kept.append(level.downsample(kept[-1]))
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(kept[-1], time)), time)
        for level in reversed(self.up):
            for index in range(len(level.block)):
                x = run(level, index, torch.cat([x, kept.pop()], dim=1))
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


class Encoder(nn.Module):
    def __init__(self, base: int, mult: Sequence[int], out: int, layers: int) -> None:
        super().__init__()
        self.conv_in, width = nn.Conv2d(3, base, 3, padding=1), base
        self.down: Any = nn.ModuleList()
        for number, times in enumerate(mult):
            level: Any = nn.Module()
            level.block = nn.ModuleList()
            for _ in range(layers):
                level.block.append(PixelResidual(width, times * base))
                width = times * base
            if number < len(mult) - 1:
                level.downsample = Shrink(width)
            self.down.append(level)
        self.mid: Any = middle(width)
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, out, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        x = self.conv_in(x)
        for level in self.down:
            for block in level.block:
                x = block(x)
            x = level.downsample(x) if hasattr(level, "downsample") else x
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        return self.conv_out(F.silu(self.norm_out(x)))


class OriginalDecoder(nn.Module):
    def __init__(self, base: int, mult: Sequence[int], latents: int, layers: int) -> None:
        super().__init__()
        width = base * mult[-1]
        self.conv_in = nn.Conv2d(latents, width, 3, padding=1)
        self.mid: Any = middle(width)
        self.up: Any = nn.ModuleList()
        for number, times in reversed(list(enumerate(mult))):
            level: Any = nn.Module()
            level.block = nn.ModuleList()
            for _ in range(layers + 1):
                level.block.append(PixelResidual(width, times * base))
                width = times * base
            if number:
                level.upsample = Up(width)
            self.up.insert(0, level)
        self.norm_out, self.conv_out = norm(width), nn.Conv2d(width, 3, 3, padding=1)

    def forward(self, z: Tensor) -> Tensor:
        x = self.conv_in(z)
        x = self.mid.block_2(self.mid.attn_1(self.mid.block_1(x)))
        for level in reversed(self.up):
            for block in level.block:
                x = block(x)
            x = level.upsample(x) if hasattr(level, "upsample") else x
        return self.conv_out(F.silu(self.norm_out(x)))


class OriginalFirstStage(nn.Module):
    """codes: how many entries the codebook has; None: a KL autoencoder, whose encoder gives mean and log variance."""

    def __init__(self, base: int, mult: Sequence[int], latents: int, codes: int | None, layers: int = 2) -> None:
        super().__init__()
        double = 1 if codes else 2
        self.encoder = Encoder(base, mult, double * latents, layers)
        self.decoder = OriginalDecoder(base, mult, latents, layers)
        self.quant_conv = nn.Conv2d(double * latents, double * latents, 1)
        self.post_quant_conv = nn.Conv2d(latents, latents, 1)
        if codes:
            self.quantize: Any = nn.Module()
            self.quantize.embedding = nn.Embedding(codes, latents)

    def encode(self, images: Tensor) -> Tensor:
        """The latents before the codebook, or mean and log variance."""
        return self.quant_conv(self.encoder(images))

    def decode(self, z: Tensor) -> Tensor:
        if hasattr(self, "quantize"):
            codes = self.quantize.embedding.weight
            distances = (z[:, None] - codes[None, :, :, None, None]).square().sum(2)
            z = codes[distances.argmin(1)].movedim(-1, 1)
        return self.decoder(self.post_quant_conv(z))
