"""Networks of diffusers, each with one thing that the original has and diffusers' own class has not. All keep its names."""

import inspect
from typing import Any, TypeVar

from diffusers import PixArtTransformer2DModel, UNet2DConditionModel, UNet2DModel
from diffusers.models.attention_processor import Attention
from torch import Tensor, nn

Network = TypeVar("Network", bound=type[nn.Module])


def with_all_arguments(network: Network) -> Network:
    """Names in the signature of a class all that its parent takes, of which its ``**architecture`` may be: diffusers'
    ``from_pretrained`` leaves out arguments that are not named there."""
    own, parents = (inspect.signature(vars(cls)["__init__"]) for cls in network.__mro__[:2])
    named = [each for each in own.parameters.values() if each.kind is not each.VAR_KEYWORD]
    known = {each.name: each for each in (*named, *parents.parameters.values())}
    vars(network)["__init__"].__signature__ = own.replace(parameters=list(known.values()))
    return network


@with_all_arguments
class HeadsUNet2DModel(UNet2DModel):
    """A U-Net whose attentions have ``num_heads`` heads each, not heads of one size (latent diffusion on LSUN-Churches)."""

    def __init__(self, num_heads: int, **architecture: Any) -> None:
        super().__init__(**architecture)
        self.register_to_config(num_heads=num_heads)
        for attention in (module for module in self.modules() if isinstance(module, Attention)):
            width = attention.to_q.out_features
            if width % num_heads:
                raise ValueError(f"num_heads={num_heads}: it does not divide the {width} channels of an attention")
            attention.heads = attention.sliceable_head_dim = num_heads
            attention.scale = (width / num_heads) ** -0.5


@with_all_arguments
class ClassUNet2DConditionModel(UNet2DConditionModel):
    """A U-Net that attends to one learned token for each class (latent diffusion on ImageNet).

    num_classes: with the null class, which is the last one. The token is looked up in full precision.
    """

    def __init__(self, num_classes: int, **architecture: Any) -> None:
        super().__init__(**architecture)
        self.register_to_config(num_classes=num_classes)
        self.class_context = nn.Embedding(num_classes, self.config.cross_attention_dim)

    def forward(self, sample: Tensor, timestep: Tensor, class_labels: Tensor, **options: Any) -> Any:
        """sample [n, c, h, w], timestep int64 [n], class_labels int64 [n] -> as UNet2DConditionModel."""
        return super().forward(sample, timestep, self.class_context(class_labels).unsqueeze(1), **options)


class PixArtModel(PixArtTransformer2DModel):
    """PixArt, called like all the others: ``network(x_t, t, encoder_hidden_states=...)``; pipelines name every argument."""

    def forward(self, hidden_states: Tensor, timestep: Tensor, encoder_hidden_states: Tensor, **options: Any) -> Any:
        """hidden_states [n, c, h, w], timestep int64 [n], encoder_hidden_states [n, tokens, d] -> [n, 2c, h, w]."""
        options.setdefault("added_cond_kwargs", {"resolution": None, "aspect_ratio": None})
        return super().forward(hidden_states, encoder_hidden_states, timestep, **options)
