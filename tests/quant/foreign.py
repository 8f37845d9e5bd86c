"""Networks of somebody else's making: what can be found in a layer, or in place of one. Images [n, 1, 8, 8], 8 channels."""

from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune, spectral_norm, weight_norm

WIDTH = 8
ENDS = 8 * 8 * WIDTH * 9
"""MACs of the first and of the last convolution, each."""
MIDDLE = ENDS * WIDTH
"""MACs of a 3x3 convolution of the middle."""


def conv(kind: Any = nn.Conv2d, **options: Any) -> Any:
    return kind(WIDTH, WIDTH, 3, padding=1, **options)


class Sandwich(nn.Module):
    """A convolution, what a test puts between, a convolution."""

    def __init__(self, middle: nn.Module) -> None:
        super().__init__()
        self.first, self.last = nn.Conv2d(1, WIDTH, 3, padding=1), nn.Conv2d(WIDTH, 1, 3, padding=1)
        self.mid = middle

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (self.last(torch.relu(self.mid(torch.relu(self.first(x))))),)


class Renamed(nn.Conv2d):
    """Nothing is overridden."""


class Logging(nn.Conv2d):
    """Takes more than an input, computes the same, and can be asked."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.calls = 0

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        self.calls += 1
        return super().forward(x)

    def about(self) -> str:
        return f"{self.out_channels} channels"


class Scaled(Logging):
    """Computes something else where it is called so."""

    def forward(self, x: Tensor, scale: float = 1.0) -> Tensor:
        return super().forward(x) * scale


class Standardized(nn.Conv2d):
    """Weight standardization."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight / weight.std((1, 2, 3), keepdim=True), self.bias)


class MagnitudePreserving(nn.Module):
    """As in EDM2: no layer of torch at all."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(WIDTH, WIDTH, 3, 3))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.weight / self.weight.flatten(1).norm(dim=1)[:, None, None, None], padding=1)


class FromBuffers(nn.Module):
    """The weight lies packed in buffers and is computed at each call."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("packed", torch.randint(-8, 8, (WIDTH, WIDTH, 3, 3), dtype=torch.int8))
        self.register_buffer("scale", torch.rand(WIDTH, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, self.packed.float() * self.scale, padding=1)  # type: ignore[operator]


class Functional(nn.Module):
    """Uses a layer's weight, and calls the layer too where ``called``."""

    def __init__(self, called: bool) -> None:
        super().__init__()
        self.inner, self.called = conv(), called

    def forward(self, x: Tensor) -> Tensor:
        x = self.inner(x) if self.called else x
        return F.conv2d(x, self.inner.weight, self.inner.bias, padding=1)


class Tied(nn.Module):
    """One parameter under two names, one of them no layer's."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = conv()
        self.copy = self.inner.weight

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(self.inner(x), self.copy, padding=1)


class LowRank(nn.Module):
    """A layer with a low-rank branch beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.base, self.down, self.up = conv(), nn.Conv2d(WIDTH, 2, 1), nn.Conv2d(2, WIDTH, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.base(x) + self.up(self.down(x))


class Volume(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Conv3d(WIDTH, WIDTH, (1, 3, 3), padding=(0, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x[:, :, None])[:, :, 0]


class Attends(nn.Module):
    """Attention by hand: 64 tokens of 8 channels."""

    def __init__(self, product: Callable[[Tensor, Tensor, Tensor], Tensor]) -> None:
        super().__init__()
        self.qkv, self.product = nn.Linear(WIDTH, 3 * WIDTH), product

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x.flatten(2).mT).chunk(3, dim=-1)
        return self.product(q, k, v).mT.view_as(x)


ATTENTION: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
    "matmul": lambda q, k, v: torch.matmul((q @ k.mT).softmax(-1), v),
    "bmm": lambda q, k, v: torch.bmm(torch.baddbmm(q.new_zeros(1, 1, 1), q, k.mT).softmax(-1), v),
    "einsum": lambda q, k, v: torch.einsum("bij,bjc->bic", torch.einsum("bic,bjc->bij", q, k).softmax(-1), v),
    "fused": lambda q, k, v: F.scaled_dot_product_attention(q[:, None], k[:, None], v[:, None])[:, 0],
    "one by one": lambda q, k, v: torch.stack([(one @ k[i].T).softmax(-1) @ v[i] for i, one in enumerate(q)]),
}
PRODUCTS = 2 * 64 * 64 * WIDTH
"""MACs of both products."""


class TorchAttention(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.TransformerEncoderLayer(WIDTH, 2, 16, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.flatten(2).mT).mT.view_as(x)
        return y


class Doubled(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return 2 * weight


class Noisy(nn.Module):
    def forward(self, weight: Tensor) -> Tensor:
        return weight + 0.1 * torch.randn_like(weight)


def parametrized(how: nn.Module) -> nn.Module:
    layer = conv()
    parametrize.register_parametrization(layer, "weight", how)
    return layer


REPARAMETRIZED: dict[str, Callable[[], nn.Module]] = {
    "weight norm by hook": lambda: weight_norm(conv()),
    "weight norm": lambda: parametrizations.weight_norm(conv()),
    "spectral norm by hook": lambda: spectral_norm(conv()),
    "spectral norm": lambda: parametrizations.spectral_norm(conv()),
    "orthogonal": lambda: parametrizations.orthogonal(conv()),
    "one's own": lambda: parametrized(Doubled()),
    "pruned": lambda: prune.random_unstructured(conv(), "weight", 0.5),
}


def rewriting() -> nn.Module:
    """A hook of one's own writes the weight at each call."""
    layer = conv()
    kept = layer.weight.detach().clone()

    def write(layer: Any, _: Any) -> None:
        layer.weight.data.copy_(kept)

    layer.register_forward_pre_hook(write)
    return layer


def replaced(forward: Callable[[Any, Tensor], Tensor]) -> nn.Module:
    """Somebody has replaced the forward of one object."""
    layer = conv()
    layer.forward = lambda x: forward(layer, x)
    return layer
