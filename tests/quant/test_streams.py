import copy
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from greenlet import getcurrent
from quant_helpers import batches, conditional, quantized, split_sizes
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp.errors import UserError
from qdexp.quant.adapter import Adapter
from qdexp.quant.blocks import Batch, Call, call, first_row, outputs
from qdexp.quant.cache import Budgets, RowCache
from qdexp.quant.streams import Stream, streaming

Batches = Sequence[Batch]


class StopHereError(Exception):
    """Raised where a pass shall end."""


@torch.no_grad()
def restarted(network: nn.Module, block: str, batch: Batch) -> tuple[Call, tuple[Tensor, ...]]:
    """What one batch's pass hands to a block and gets from it: a pass from the start that ends there."""
    seen: list[Any] = []

    def stop(_: nn.Module, args: Any, kwargs: Any, result: Any) -> None:
        seen.extend([(args, kwargs), outputs(result)])
        raise StopHereError

    handle = network.get_submodule(block).register_forward_hook(stop, with_kwargs=True)
    with pytest.raises(StopHereError):
        call(network, batch)
    handle.remove()
    return seen[0], seen[1]


def assert_same(one: Any, other: Any) -> None:
    """Equal to the last bit, whatever they are made of."""
    mine, my_spec = pytree.tree_flatten(one)
    theirs, their_spec = pytree.tree_flatten(other)
    assert my_spec == their_spec
    for first, second in zip(mine, theirs, strict=True):
        assert torch.equal(first, second) if isinstance(first, Tensor) else first == second


def leaves(tree: Any) -> list[Tensor]:
    """All tensors that it is made of."""
    return [leaf for leaf in pytree.tree_leaves(tree) if isinstance(leaf, Tensor)]


def transformer() -> nn.Module:
    """A class-conditional diffusion transformer."""
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    ).eval()


def case(name: str, unet: nn.Module) -> tuple[nn.Module, Batches]:
    """A network, and three batches of which the last is smaller."""
    sizes = (3, 3, 2)
    t = torch.randint(0, 1000, (8,)).split(sizes)
    images, latents = torch.randn(8, 1, 8, 8).split(sizes), torch.randn(8, 4, 8, 8).split(sizes)
    if name in ("unet", "split"):
        return unet, list(zip(images, t, strict=True))
    if name == "conditional":
        return conditional().eval(), list(zip(latents, t, torch.randn(8, 3, 8).split(sizes), strict=True))
    labels = [{"class_labels": part} for part in torch.randint(0, 10, (8,)).split(sizes)]
    return transformer(), list(zip(latents, t, labels, strict=True))


def split(network: nn.Module, data: Batches) -> nn.Module:
    """It, quantized, with split shortcuts."""
    return quantized(network, 4, 6, splits=split_sizes(network, data[0], "skip+conv1"))


def blocks(network: nn.Module, data: Batches) -> list[str]:
    return list(Adapter(network, first_row(data[0])).blocks)


@pytest.mark.parametrize("budgets", [(None, 0), (1, None), (1, 0), (20_000, 10_000)], ids=str)
@pytest.mark.parametrize("name", ["unet", "conditional", "transformer", "split"])
def test_the_same_bits_as_passes_that_start_again_for_every_block(
    tiny_unet: UNet2DModel, tmp_path: Path, name: str, budgets: tuple[int | None, int | None]
) -> None:
    """Also where what the passes hold lies in the host's memory or in files: all of it, or some."""
    original, data = case(name, tiny_unet)
    names = blocks(original, data)
    network = split(original, data) if name == "split" else original
    assert len(names) > 2
    device, host = budgets
    empty = 0
    cache = RowCache(Budgets(device=device, host=host, scratch=tmp_path), torch.device("cpu"), [network])
    with cache, streaming(network, names, data, cache) as stream:
        assert stream.sizes == [3, 3, 2]
        for block in names:
            calls = list(stream.calls)
            empty += sum(not leaf.untyped_storage().nbytes() for leaf in leaves(calls))
            with cache.lent(*leaves(calls)):
                handed = pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, calls)
            results = stream.advance()
            for batch, call, result in zip(data, handed, results, strict=True):
                expected_call, expected = restarted(network, block, batch)
                assert_same(call, expected_call)
                with cache.lent(*result):
                    assert_same(result, expected)
                assert not any(one.requires_grad for one in result)
    assert (empty == 0) == (device is None)
    assert not list(tmp_path.iterdir())


def test_every_module_runs_once_a_pass(tiny_unet: UNet2DModel) -> None:
    data = batches(3, 2)
    names = blocks(tiny_unet, data)
    runs: Counter[str] = Counter()
    for name, module in tiny_unet.named_modules():
        module.register_forward_hook(lambda *_, name=name: runs.update([name]))
    with torch.no_grad():
        tiny_unet(*data[0])
    once = dict(runs)
    runs.clear()
    with streaming(tiny_unet, names, data) as stream:
        for _ in names:
            stream.advance()
        assert runs == {name: len(data) * count for name, count in once.items()}


def test_a_block_runs_as_it_is_when_the_stream_advances(tiny_unet: UNet2DModel) -> None:
    data = batches(3, 2)
    names = blocks(tiny_unet, data)
    changed = copy.deepcopy(tiny_unet)
    with streaming(tiny_unet, names, data) as stream:
        for place, name in enumerate(names):
            for network in (tiny_unet, changed) if place % 3 == 0 else ():
                for parameter in network.get_submodule(name).parameters():
                    parameter.data *= 1.5
            calls = list(stream.calls)
            for batch, call, result in zip(data, calls, stream.advance(), strict=True):
                expected_call, expected = restarted(changed, name, batch)
                assert_same(call, expected_call)
                assert_same(result, expected)


def test_a_block_may_run_outside_the_stream_meanwhile(tiny_unet: UNet2DModel) -> None:
    """As it does while something is learned of it, with gradients."""
    data = batches(3, 2)
    names = blocks(tiny_unet, data)
    with streaming(tiny_unet, names, data) as stream:
        for name in names:
            block = tiny_unet.get_submodule(name)
            alone = [outputs(block(*args, **kwargs)) for args, kwargs in stream.calls]
            assert all(value.requires_grad for value in leaves(alone))
            assert_same(pytree.tree_map(Tensor.detach, alone), stream.advance())


def assert_untouched(network: nn.Module, data: Batches, expected: Tensor) -> None:
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    with torch.no_grad():
        assert torch.equal(network(*data[0])[0], expected)


@pytest.mark.parametrize("steps", [0, 1, 7, 18])
def test_closed_at_any_block_it_leaves_the_network_as_it_was(tiny_unet: UNet2DModel, steps: int) -> None:
    data = batches(3, 2)
    names = blocks(tiny_unet, data)
    with torch.no_grad():
        expected = tiny_unet(*data[0])[0]
    stream = Stream(tiny_unet, names, data)
    for _ in range(steps):
        stream.advance()
    stream.close()
    assert_untouched(tiny_unet, data, expected)
    stream.close()
    with streaming(tiny_unet, names, data) as again:
        assert_same(again.calls[0], restarted(tiny_unet, names[0], data[0])[0])
    assert torch.is_grad_enabled()


class Chain(nn.Module):
    """Three layers; what lies between them is up to a subclass."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.third = (nn.Linear(2, 2) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.first(x)))
        return y


CHAIN = ["first", "second", "third"]


class Guarded(Chain):
    """Counts how often it was entered and left."""

    entered = left = 0

    def forward(self, x: Tensor) -> Tensor:
        self.entered += 1
        try:
            return super().forward(x)
        finally:
            self.left += 1


def test_passes_end_when_the_stream_is_closed() -> None:
    network = Guarded()
    stream = Stream(network, CHAIN, [(torch.ones(2, 2),), (torch.ones(1, 2),)])
    stream.advance()
    assert (network.entered, network.left) == (2, 0)
    stream.close()
    assert (network.entered, network.left) == (2, 2)


class Branching(Chain):
    """Leaves a layer out where the input is negative."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x) if x.sum() > 0 else self.third(self.first(x))
        return y


class Swapping(Chain):
    """Changes the order of two layers where the input is negative."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = super().forward(x) if x.sum() > 0 else self.second(self.third(self.first(x)))
        return y


@pytest.mark.parametrize("kind", [Branching, Swapping])
@pytest.mark.parametrize("signs", [(1, -1), (-1, 1)])
def test_batches_must_take_one_path(kind: type[Chain], signs: tuple[int, int]) -> None:
    network = kind()
    with (
        pytest.raises(UserError, match="cannot be reconstructed block by block"),
        streaming(network, CHAIN, [(sign * torch.ones(2, 2),) for sign in signs]) as stream,
    ):
        for _ in CHAIN:
            stream.advance()
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())


class Moded(Chain):
    """Runs its layers under a mode of its own."""

    def __init__(self, mode: Callable[[], AbstractContextManager[Any]]) -> None:
        super().__init__()
        self.mode = mode

    def forward(self, x: Tensor) -> Tensor:
        with self.mode():
            y: Tensor = super().forward(x)
        return y


@pytest.mark.parametrize("mode", [torch.inference_mode, partial(torch.autocast, "cpu", torch.bfloat16)])
def test_modes_that_would_leak_are_refused(mode: Callable[[], AbstractContextManager[Any]]) -> None:
    with pytest.raises(UserError, match="autocast or inference mode"), streaming(Moded(mode), CHAIN, [(torch.ones(2, 2),)]):
        pass
    assert not torch.is_inference_mode_enabled()
    assert not torch.is_autocast_enabled("cpu")


def test_a_pass_that_is_given_up_leaves_the_gradient_mode_alone() -> None:
    with (
        pytest.raises(ArithmeticError),
        streaming(Moded(torch.no_grad), CHAIN, [(torch.ones(2, 2),)]) as stream,
    ):
        stream.advance()
        raise ArithmeticError
    assert torch.is_grad_enabled()


class Failing(Chain):
    """Fails before, between or after its layers."""

    def __init__(self, where: int) -> None:
        super().__init__()
        self.where = where

    def forward(self, x: Tensor) -> Tensor:
        for place, layer in enumerate([self.first, self.second, self.third, nn.Identity()]):
            if place == self.where and len(x) == 1:
                raise ArithmeticError("cannot go on")
            x = layer(x)
        return x


@pytest.mark.parametrize("where", range(4))
def test_an_error_in_the_network_reaches_the_caller_as_it_is(where: int) -> None:
    network = Failing(where)
    done = 0
    with (
        pytest.raises(ArithmeticError, match="cannot go on"),
        streaming(network, CHAIN, [(torch.ones(2, 2),), (torch.ones(1, 2),)]) as stream,
    ):
        for _ in CHAIN:
            stream.advance()
            done += 1
    assert done == max(where - 1, 0)
    assert not any(module._forward_pre_hooks or module._forward_hooks for module in network.modules())
    assert network(torch.ones(2, 2)).shape == (2, 2)


class InPlace(Chain):
    """Works in place on what its layers return, as nn.ReLU(inplace=True) does."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.first(x).relu_()).add_(1))
        return y


def test_outputs_are_those_of_the_block_whatever_happens_to_them_in_place() -> None:
    network, data = InPlace(), [(torch.randn(3, 2),), (torch.randn(3, 2),)]
    with streaming(network, CHAIN, data) as stream:
        for name in CHAIN:
            calls = [pytree.tree_map(torch.clone, call) for call in stream.calls]
            for call, result in zip(calls, stream.advance(), strict=True):
                assert_same(result, outputs(network.get_submodule(name)(*call[0], **call[1])))


class Repeating(Chain):
    """Runs one of its layers twice."""

    def forward(self, x: Tensor) -> Tensor:
        y: Tensor = self.third(self.second(self.first(self.second(x))))
        return y


def test_a_block_that_runs_twice_is_met_once() -> None:
    network, data = Repeating(), [(torch.randn(3, 2),)]
    names = ["second", "first", "third"]
    with streaming(network, names, data) as stream:
        for name in names:
            ((args, _),) = stream.calls
            ((result,),) = stream.advance()
            assert torch.equal(result, network.get_submodule(name)(*args))


def test_streams_beside_one_another_do_not_mix(tiny_unet: UNet2DModel) -> None:
    """Over two networks, and a third one over the first network that is at another block."""
    data = batches(3, 2)
    names = blocks(tiny_unet, data)
    other = quantized(copy.deepcopy(tiny_unet), 4, 8)
    with (
        streaming(tiny_unet, names, data) as ahead,
        streaming(other, names, data) as beside,
        streaming(tiny_unet, names, data) as behind,
    ):
        assert_same(ahead.advance()[0], restarted(tiny_unet, names[0], data[0])[1])
        for place, name in enumerate(names):
            for network, stream in ((other, beside), (tiny_unet, behind)):
                expected = [restarted(network, name, batch) for batch in data]
                assert_same(list(stream.calls), [call for call, _ in expected])
                assert_same(stream.advance(), [result for _, result in expected])
            if place + 1 < len(names):
                assert_same(ahead.advance(), [restarted(tiny_unet, names[place + 1], batch)[1] for batch in data])


class Watched(nn.Module):
    """A network that streams through the one that it holds before it calls it."""

    def __init__(self) -> None:
        super().__init__()
        self.before, self.inner = nn.Linear(2, 2), Chain()
        self.seen: list[Tensor] = []

    def forward(self, x: Tensor) -> Tensor:
        x = self.before(x)
        with streaming(self.inner, CHAIN, [(x,), (2 * x,)]) as stream:
            self.seen.extend(result for _ in CHAIN for (result,) in stream.advance())
        y: Tensor = self.inner(x)
        return y


def test_streams_inside_one_another_do_not_mix() -> None:
    network, x = Watched(), torch.randn(3, 2)
    names = ["before", *(f"inner.{name}" for name in CHAIN)]
    here = getcurrent()
    with streaming(network, names, [(x,)]) as stream:
        found = [stream.advance()[0][0] for _ in names]
        assert getcurrent() is here
    expected, values = [], [found[0], 2 * found[0]]
    with torch.no_grad():
        for name in CHAIN:
            values = [network.inner.get_submodule(name)(value) for value in values]
            expected.extend(values)
    assert_same(network.seen, expected)
    assert_same(found[1:], expected[::2])
