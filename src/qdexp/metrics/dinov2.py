"""DINOv2's vision transformer as a feature extractor (Oquab et al., arXiv 2304.07193), from its published weights in a file.

Images are prepared as torch-fidelity does it: resized to 224 x 224 by bilinear interpolation as of TensorFlow 1 (no
antialiasing, corners not aligned), then normalised by ImageNet's means and deviations. The code that came with the metric FD of
DINOv2's features resizes by bicubic interpolation with antialiasing: numbers of the two do not compare. The features are the
normalised class token. Position embeddings are interpolated from 37 x 37 to 16 x 16 as the published code does it, by a scale
of 16.1 / 37. Modules are called as the published weights call them.
"""

import io
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch_fidelity.interpolate_compat_tensorflow import interpolate_bilinear_2d_like_tensorflow1x

from qdexp.config import WITHOUT_EFFECT
from qdexp.errors import UserError
from qdexp.metrics.extractor import Extractor

SIDE, PATCH, TRAINED = 224, 14, 37
"""Pixels of an image and of a patch; patches of a side in training."""
OFFSET = 0.1
"""Added to the number of patches before position embeddings are scaled, so that rounding makes none too few."""
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


@dataclass(frozen=True)
class DinoV2(Extractor):
    """DINOv2 features of RGB images of any size, and of grey ones, which are repeated to RGB."""

    batch: int = 32
    width: int = 1024
    depth: int = 24
    heads: int = 16
    place: str = field(default="metric.fd_dinov2.weights", metadata=WITHOUT_EFFECT)
    without: str = field(default="metric.fd_dinov2=null", metadata=WITHOUT_EFFECT)

    @property
    def option(self) -> str:
        return self.place

    def takes(self, shape: Sequence[int]) -> bool:
        return shape[0] in (1, 3)

    def build(self) -> nn.Module:
        if self.random:
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(0)
                network = VisionTransformer(self.width, self.depth, self.heads)
        else:
            content = io.BytesIO(self.checked_weights())
            with torch.device("meta"):
                network = VisionTransformer(self.width, self.depth, self.heads)
            try:
                network.load_state_dict(torch.load(content, map_location="cpu", weights_only=True), assign=True)
            except Exception as error:  # whatever comes of bytes that are no such weights
                raise UserError(f"{self.option}={self.weights}: not the weights of {self.name} under their published names; "
                                f"name a file that holds them") from error  # fmt: skip
        return network.eval().requires_grad_(False)


DINOV2 = DinoV2(
    name="dinov2-vit-l-14",
    pool="dinov2",
    shape=(3,),
    weights=Path(torch.hub.get_dir()) / "checkpoints" / "dinov2_vitl14_pretrain.pth",  # where torch.hub keeps them
    digest="d5383ea8f4877b2472eb973e0fd72d557c7da5d3611bd527ceeb1d7162cbf428",
    publisher="https://dl.fbaipublicfiles.com/dinov2/dinov2_vitl14/dinov2_vitl14_pretrain.pth",
)
RANDOM_DINOV2 = replace(DINOV2, name="dinov2-vit-l-14-random", digest="seed-0", random=True)
EXTRACTORS = {extractor.name: extractor for extractor in (DINOV2, RANDOM_DINOV2)}


class VisionTransformer(nn.Module):
    """uint8 images [n, 1 or 3, h, w] -> a tuple of the features [n, width]."""

    def __init__(self, width: int, depth: int, heads: int) -> None:
        super().__init__()
        self.cls_token = nn.Parameter(0.02 * torch.randn(1, 1, width))
        self.pos_embed = nn.Parameter(0.02 * torch.randn(1, 1 + TRAINED**2, width))
        self.mask_token = nn.Parameter(torch.zeros(1, width))  # of training alone
        self.patch_embed = nn.ModuleDict({"proj": nn.Conv2d(3, width, PATCH, PATCH)})
        self.blocks = nn.ModuleList(Block(width, heads) for _ in range(depth))
        self.norm = nn.LayerNorm(width, eps=1e-6)

    def forward(self, images: Tensor) -> tuple[Tensor]:
        x = interpolate_bilinear_2d_like_tensorflow1x(images.float().expand(-1, 3, -1, -1), (SIDE, SIDE), align_corners=False)
        mean, deviation = (255 * x.new_tensor(one)[:, None, None] for one in (MEAN, DEVIATION))
        patches = self.patch_embed["proj"]((x - mean) / deviation).flatten(2).transpose(1, 2)
        x = torch.cat([self.cls_token.expand(len(x), -1, -1), patches], dim=1) + self._positions()
        for block in self.blocks:
            x = block(x)
        return (self.norm(x[:, 0]),)

    def _positions(self) -> Tensor:
        """[1, 1 + patches, width]."""
        first, rest = self.pos_embed[:, :1], self.pos_embed[:, 1:]
        grid = rest.transpose(1, 2).unflatten(2, (TRAINED, TRAINED))
        scaled = F.interpolate(grid, scale_factor=(SIDE // PATCH + OFFSET) / TRAINED, mode="bicubic")
        return torch.cat([first, scaled.flatten(2).transpose(1, 2)], dim=1)


class Block(nn.Module):
    """x + g1 attention(norm1 x), then x + g2 mlp(norm2 x)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm1, self.norm2 = nn.LayerNorm(width, eps=1e-6), nn.LayerNorm(width, eps=1e-6)
        self.attn = nn.ModuleDict({"qkv": nn.Linear(width, 3 * width), "proj": nn.Linear(width, width)})
        self.mlp = nn.ModuleDict({"fc1": nn.Linear(width, 4 * width), "fc2": nn.Linear(4 * width, width)})
        self.ls1, self.ls2 = (nn.ParameterDict({"gamma": torch.ones(width)}) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.attn["qkv"](self.norm1(x)).unflatten(2, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        x = x + self.ls1["gamma"] * self.attn["proj"](mixed)
        return x + self.ls2["gamma"] * self.mlp["fc2"](F.gelu(self.mlp["fc1"](self.norm2(x))))
