"""A U-Net whose shortcuts are as bimodal as one likes, and whose function stays the same.

At each concatenation of the up path the residual block reads [g h, skip] in place of [h, skip], h the deep part, and the input
channels of its 1x1 shortcut that meet h are divided by g:

    (W_h / g) (g h) + W_skip skip + b = W_h h + W_skip skip + b,    GroupNorm(g h) = GroupNorm(h) up to its eps.

With g a power of two the first is exact in floating point. So full precision is the same for every g, while the range of the
deep part grows by g and that of its weights shrinks by g: the bimodal shortcuts that Q-Diffusion splits (Li et al. 2023,
arXiv 2302.04304, section 3.3), as a controlled variable.
"""

from typing import Any

import torch
from diffusers import UNet2DModel
from diffusers.models.resnet import ResnetBlock2D
from torch import Tensor

from qdexp.models.networks import with_all_arguments


class AmplifiedResnetBlock(ResnetBlock2D):
    """A residual block that multiplies the first ``deep`` channels of its input by ``gain`` before it does anything else."""

    deep: int
    gain: float

    def forward(self, input_tensor: Tensor, temb: Tensor) -> Tensor:
        """input_tensor [n, deep + skip, h, w], temb [n, d] -> [n, out, h, w]."""
        deep, skip = input_tensor.tensor_split([self.deep], dim=1)
        y: Tensor = super().forward(torch.cat([self.gain * deep, skip], dim=1), temb)
        return y


@with_all_arguments
class BimodalUNet2DModel(UNet2DModel):
    """diffusers' UNet2DModel, its residual blocks of the up path amplified; names and shapes of the weights are the same.

    deep_gain: the factor g > 0. The other arguments are those of UNet2DModel. Skip connections, attention and upsamplers see
    what they always saw. Raises ValueError where a group of a GroupNorm straddles a boundary: it would not undo g.
    """

    def __init__(self, deep_gain: float = 1.0, **architecture: Any) -> None:
        super().__init__(**architecture)
        self.register_to_config(deep_gain=deep_gain)
        if not 0 < deep_gain < float("inf"):
            raise ValueError(f"deep_gain={deep_gain}: choose a positive number")
        deep = self.config.block_out_channels[-1]
        for level, block in enumerate(self.up_blocks):
            for index, resnet in enumerate(block.resnets):
                if type(resnet) is not ResnetBlock2D:
                    raise ValueError(
                        f"up_blocks.{level}.resnets.{index} is a {type(resnet).__name__}: only ResnetBlock2D is known"
                    )
                if deep % (resnet.norm1.num_channels // resnet.norm1.num_groups):
                    where = f"up_blocks.{level}.resnets.{index}.norm1"
                    raise ValueError(f"deep_gain: a group of {where} straddles the boundary at channel {deep}; "
                                     f"choose other block_out_channels or norm_num_groups")  # fmt: skip
                # the object changes class, as quantized layers do: names of parameters and modules stay
                resnet.__class__ = AmplifiedResnetBlock
                resnet.deep, resnet.gain = deep, deep_gain
                deep = resnet.out_channels

    def adapt_weights(self, weights: dict[str, Tensor]) -> dict[str, Tensor]:
        """The weights with which this network computes what UNet2DModel computes with ``weights``, all or some."""
        adapted = dict(weights)
        for name, resnet in self.named_modules():
            key = f"{name}.conv_shortcut.weight"
            if isinstance(resnet, AmplifiedResnetBlock) and key in weights:
                deep, skip = weights[key].tensor_split([resnet.deep], dim=1)
                adapted[key] = torch.cat([deep / resnet.gain, skip], dim=1)
        return adapted
