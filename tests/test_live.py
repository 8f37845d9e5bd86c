"""The bytes that tensors hold at once: counted by hand, and as torch's own profiler counts them."""

from collections.abc import Callable
from copy import deepcopy
from itertools import accumulate

import pytest
import torch
from diffusers import UNet2DModel
from torch import Tensor, nn
from torch.profiler import ProfilerActivity, profile

from qdexp.live import Live, own_bytes


def profiled(work: Callable[[], object]) -> int:
    """The most that torch's allocator on the CPU has handed out at once."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as found:
        work()
    events = found.profiler.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


def counted(work: Callable[[], object]) -> int:
    with Live() as live:
        work()
    return live.peak


@pytest.mark.parametrize("device", ["cpu", "meta"])
def test_what_is_freed_counts_no_more_and_views_never(device: str) -> None:
    x = torch.zeros(1000, device=device)
    kept: list[Tensor] = []
    with Live() as live:
        for _ in range(3):
            x = x + 1
        assert (live.now, live.peak) == (4000, 8000)
        kept += [x.view(10, 100), x[3:]]
        x.add_(1)
        assert live.now == 4000
        del x
        assert live.now == 4000
        kept.clear()
        assert (live.now, live.peak) == (0, 8000)


def test_a_backward_pass_counts_what_it_kept_and_the_gradients() -> None:
    def step(device: str) -> int:
        network = nn.Sequential(nn.Linear(100, 1000), nn.ReLU(), nn.Linear(1000, 10)).to(device)
        x = torch.zeros(64, 100, device=device)
        return counted(lambda: network(x).square().sum().backward())

    own = 4 * (100 * 1000 + 1000 + 1000 * 10 + 10)
    assert step("meta") == step("cpu") > own


@pytest.mark.parametrize("backward", [False, True])
def test_on_meta_it_is_what_the_profiler_finds_on_the_cpu(tiny_unet: UNet2DModel, backward: bool) -> None:
    rows, tiny_unet = 64, tiny_unet.to(memory_format=torch.channels_last)
    # as networks are built: in the other order kernels of the CPU turn their inputs about, within an operator

    def work(network: nn.Module, device: str) -> Callable[[], object]:
        x, t = torch.zeros(rows, 1, 8, 8, device=device), torch.zeros(rows, dtype=torch.int64, device=device)

        def run() -> None:
            with torch.set_grad_enabled(backward):
                y = network(x, t).sample
                if backward:
                    y.square().sum().backward()

        return run

    expected = profiled(work(deepcopy(tiny_unet), "cpu"))
    assert counted(work(deepcopy(tiny_unet), "cpu")) == pytest.approx(expected, rel=0.15)
    assert counted(work(deepcopy(tiny_unet).to("meta"), "meta")) == pytest.approx(expected, rel=0.15)


def test_bytes_of_a_network_count_shared_tensors_once() -> None:
    network = nn.Sequential(nn.Linear(10, 10, bias=False), nn.Linear(10, 10, bias=False))
    network[1].weight = network[0].weight
    network.register_buffer("steps", torch.zeros(7, dtype=torch.int64))
    assert own_bytes(network) == 4 * 100 + 8 * 7
