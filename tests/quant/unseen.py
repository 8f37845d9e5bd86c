"""Networks that qdexp has never seen: a transformer with its own attention, and diffusers' transformers as they are."""

from collections.abc import Callable

import torch
import torch.nn.functional as F
from diffusers import FluxTransformer2DModel, SD3Transformer2DModel
from torch import Tensor, nn

from qdexp.quant.blocks import Batch

WIDTH, TOKENS, HEADS = 16, 6, 2


class Attention(nn.Module):
    """Fused Q, K and V, and a product by hand or torch's own."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv, self.out, self.product = nn.Linear(WIDTH, 3 * WIDTH), nn.Linear(WIDTH, WIDTH), product

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (part.unflatten(-1, (HEADS, -1)).transpose(1, 2) for part in self.qkv(x).chunk(3, dim=-1))
        y: Tensor = self.out(self.product(q, k, v).transpose(1, 2).flatten(2))
        return y


class Block(nn.Module):
    """Returns two tensors, and what is none."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.attention, self.norm, self.scale = Attention(product), nn.LayerNorm(WIDTH), nn.Parameter(torch.ones(WIDTH))
        self.up, self.down, self.text = nn.Linear(WIDTH, 32), nn.Linear(32, WIDTH), nn.Linear(WIDTH, WIDTH)

    def forward(self, x: Tensor, text: Tensor, table: Tensor) -> tuple[Tensor, None, Tensor]:
        x = x + self.scale * self.attention(self.norm(x)) + table
        return x + self.down(F.gelu(self.up(x))), None, text + self.text(text)


class Transformer(nn.Module):
    """The text comes before the timestep; each block gets a table that all rows share, as long as a batch may have rows."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor], blocks: int = 2) -> None:
        super().__init__()
        self.first, self.last, self.time = nn.Linear(4, WIDTH), nn.Linear(WIDTH, 4), nn.Linear(1, WIDTH)
        self.blocks = nn.ModuleList(Block(product) for _ in range(blocks))

    def forward(self, x: Tensor, text: Tensor, timestep: Tensor) -> dict[str, Tensor]:
        y = self.first(x) + self.time(timestep[:, None, None].float() / 1000)
        table = torch.linspace(-1, 1, TOKENS, device=x.device)[:, None].expand(-1, WIDTH).contiguous()
        for block in self.blocks:
            y, _, text = block(y, text, table)
        return {"sample": self.last(y + text.mean(1, keepdim=True))}


def sdpa(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return F.scaled_dot_product_attention(q, k, v)


def by_hand(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    return (q @ k.mT * q.shape[-1] ** -0.5).softmax(-1) @ v


def einsum(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    scores = torch.einsum("bhic,bhjc->bhij", q, k).div(q.shape[-1] ** 0.5).softmax(-1)
    return torch.einsum("bhij,bhjc->bhic", scores, v)


def linear(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Linear attention: no softmax between the products."""
    q, k = F.relu(q), F.relu(k)
    return torch.matmul(q, torch.matmul(k.mT, v)) / (torch.matmul(q, k.sum(-2, keepdim=True).mT) + 1)


def bmm(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    q, k, v = (part.flatten(0, 1) for part in (q, k, v))
    scores = torch.baddbmm(q.new_zeros(1, 1, 1), q, k.mT, beta=0, alpha=q.shape[-1] ** -0.5)
    return torch.bmm(F.dropout(scores.softmax(-1), 0.5, training=False), v).unflatten(0, (-1, HEADS))


PRODUCTS = {"sdpa": sdpa, "by hand": by_hand, "einsum": einsum, "linear": linear, "bmm": bmm}


def rows(count: int) -> Batch:
    return torch.randn(count, TOKENS, 4), torch.rand(count) * 1000, {"text": torch.randn(count, 3, WIDTH)}


def sd3() -> tuple[nn.Module, Callable[[int], Batch]]:
    network = SD3Transformer2DModel(
        sample_size=8,
        in_channels=4,
        out_channels=4,
        num_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        qk_norm="rms_norm",
        joint_attention_dim=12,
        caption_projection_dim=16,
        pooled_projection_dim=10,
        pos_embed_max_size=8,
        dual_attention_layers=(0,),
    )

    def rows(count: int) -> Batch:
        text, pooled = torch.randn(count, 5, 12), torch.randn(count, 10)
        named = {"encoder_hidden_states": text, "pooled_projections": pooled}
        return torch.randn(count, 4, 8, 8), torch.rand(count) * 1000, named

    return network, rows


def flux() -> tuple[nn.Module, Callable[[int], Batch]]:
    network = FluxTransformer2DModel(
        in_channels=16,
        num_layers=1,
        num_single_layers=2,
        attention_head_dim=8,
        num_attention_heads=2,
        joint_attention_dim=12,
        pooled_projection_dim=10,
        guidance_embeds=True,
        axes_dims_rope=(2, 2, 4),
    )

    def rows(count: int) -> Batch:
        text, pooled = torch.randn(count, 5, 12), torch.randn(count, 10)
        places = torch.cartesian_prod(torch.zeros(1), torch.arange(4.0), torch.arange(4.0)).expand(count, -1, -1)
        named = {"encoder_hidden_states": text, "pooled_projections": pooled, "guidance": torch.ones(count)}
        named |= {"img_ids": places, "txt_ids": torch.zeros(count, 5, 3)}
        return torch.randn(count, 16, 16), torch.rand(count), named

    return network, rows
