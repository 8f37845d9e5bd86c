"""Group norms of images whose channels are last in memory, in three passes over the image: its mean, its
variance, and what comes out.

    y = a x + b,  a = w / sqrt(var + eps),  b = bias - a mean

Torch's own kernel goes over such images group by group, of a few channels each: on small ones it takes longer than the
convolution beside it.
"""

from typing import Any

import torch
from torch import Tensor, nn

LEAST = 2**18
"""Elements of an input for which that pays: there are a dozen small operations beside the passes."""
PIECE = 2**18
"""Elements that are squared at a time, so that they stay in a cache."""


class ChannelsLastGroupNorm(nn.GroupNorm):
    """Computes what its class does, to the last bits; on anything but such images in the same way."""

    def forward(self, input: Tensor) -> Tensor:
        channels_last = input.ndim == 4 and input.is_contiguous(memory_format=torch.channels_last)
        if not channels_last or input.dtype != torch.float32 or input.numel() < LEAST:
            return super().forward(input)
        places = input.permute(0, 2, 3, 1).flatten(1, 2)
        count = places.shape[1] * (self.num_channels // self.num_groups)
        mean = self._grouped(places.sum(1)).sum(-1, keepdim=True) / count
        some = max(1, PIECE // places[0].numel())
        pieces = zip(places.split(some), self._of_channels(mean, (len(input), 1, -1)).split(some), strict=True)
        squares = torch.cat([(part - own).square_().sum(1) for part, own in pieces])
        factor = (self._grouped(squares).sum(-1, keepdim=True) / count).add_(self.eps).rsqrt_()
        if self.weight is not None:
            factor = factor * self._grouped(self.weight[None])
        offset = -mean * factor
        if self.bias is not None:
            offset = offset + self._grouped(self.bias[None])
        shape = (*input.shape[:2], 1, 1)
        return torch.addcmul(self._of_channels(offset, shape), input, self._of_channels(factor, shape))

    def _grouped(self, values: Tensor) -> Tensor:
        """Arrange values of channels, [rows, channels], as [rows, groups, channels of a group]."""
        return values.unflatten(-1, (self.num_groups, -1))

    def _of_channels(self, values: Tensor, shape: tuple[int, ...]) -> Tensor:
        each = self.num_channels // self.num_groups
        return values.expand(-1, -1, each).reshape(shape)


def quicken(network: nn.Module) -> None:
    """Let all group norms of a network be such; subclasses are left, whatever they compute."""
    for module in network.modules():
        if type(module) is nn.GroupNorm:
            changed: Any = module
            changed.__class__ = ChannelsLastGroupNorm
