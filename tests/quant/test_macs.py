"""Multiply-accumulates of networks of any kind, against torch's own counter."""

from collections.abc import Callable

import foreign
import pytest
import torch
from foreign import ATTENTION, Sandwich, conv
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from qdexp.quant.macs import count, macs_by_module


class Recurrent(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.GRU(8, 8, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.inner(x.flatten(2).mT)[0].mT.reshape(x.shape)
        return y


class Inference(nn.Module):
    """Switches inference mode on by itself."""

    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        with torch.inference_mode():
            y: Tensor = torch.einsum("bchw,cd->bdhw", self.inner(x.movedim(1, -1)).movedim(-1, 1), self.inner.weight)
            return y.clone()


MIDDLES: dict[str, Callable[[], nn.Module]] = {
    "grouped": lambda: conv(groups=4),
    "strided": lambda: nn.Sequential(conv(stride=2), conv(nn.ConvTranspose2d, stride=2, output_padding=1)),
    "volume": foreign.Volume,
    "transformer": foreign.TorchAttention,
    "recurrent": Recurrent,
    "inference": Inference,
    **{name: lambda name=name: foreign.Attends(ATTENTION[name]) for name in ATTENTION},  # type: ignore[misc]
}


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("middle", MIDDLES)
def test_as_many_as_torch_counts(middle: str, device: str) -> None:
    network = Sandwich(MIDDLES[middle]()).eval().to(device)
    x, t = torch.randn(1, 1, 8, 8, device=device), torch.zeros(1, device=device)
    with FlopCounterMode(display=False) as counter, sdpa_kernel(SDPBackend.MATH), torch.no_grad():
        for module in network.modules():
            module.register_forward_hook(lambda *_: None)  # hooks keep torch from its fast path, which nothing counts
        network(x, t)
    products = count(network, (x, t))
    assert sum(product.macs for product in products) == counter.get_total_flops() // 2
    assert macs_by_module(products)["first"] == foreign.ENDS


def test_products_with_a_vector_count() -> None:
    class Vector(nn.Linear):
        def forward(self, x: Tensor, t: Tensor) -> Tensor:  # type: ignore[override]
            return torch.addmv(self.bias, self.weight, x[0]).dot(x[0])[None]

    (matrix, dot) = count(Vector(8, 8), (torch.randn(1, 8), torch.zeros(1)))
    assert (matrix.macs, dot.macs) == (64, 8)
    assert matrix.weight is not None and matrix.weight.name == "weight" and dot.weight is None


def test_a_layer_that_runs_twice_counts_twice_and_no_hook_stays() -> None:
    layer = conv()
    network = Sandwich(nn.Sequential(layer, layer))
    products = count(network, (torch.randn(1, 1, 8, 8), torch.zeros(1)))
    assert sum(product.macs for product in products) == 2 * foreign.ENDS + 2 * foreign.MIDDLE
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())
