"""What quantized layers know of the call that runs: its timesteps and its branch."""

import copy
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import DiTTransformer2DModel, UNet2DModel
from quant_helpers import batches, quantized
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.quant import MinMax, Scheme, convert, observe_activations, plan_bits
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.adapter import Adapter
from qdexp.quant.blocks import Batch, call, first_row, outputs, run
from qdexp.quant.cache import Budgets, RowCache
from qdexp.quant.context import UNKNOWN, CallContext, CallState, contexts, knowing, share, spread
from qdexp.quant.scheme import Time, TimeGroups
from qdexp.quant.streams import streaming
from qdexp.quant.timegroups import set_time
from qdexp.sampling.conditions import Asked

CPU = torch.device("cpu")
THREE = TimeGroups((250, 700))


class Reader(nn.Module):
    """Notes what the context says whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.context = CallContext()
        self.states: list[CallState] = []

    def forward(self, x: Tensor) -> Tensor:
        self.states.append(self.context.state)
        return x

    def timesteps(self) -> list[float] | None:
        """Those of the last call."""
        t = self.states[-1].timestep
        return None if t is None else t.tolist()

    def branches(self) -> list[bool] | None:
        """Those of the last call."""
        branch = self.states[-1].branch
        return None if branch is None else branch.tolist()


class Network(nn.Module):
    """Two layers and a reader, called as networks are: `network(x, t, ...)`, and by name as pipelines do."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.reader, self.last = nn.Conv2d(1, 2, 1), Reader(), nn.Conv2d(2, 1, 1)

    def forward(self, hidden_states: Tensor, timestep: Any = None, condition: Tensor | None = None, **_: Any) -> Tensor:
        y: Tensor = self.last(self.reader(self.first(hidden_states)).tanh())
        return y


def shared(network: nn.Module | None = None) -> Any:
    network = Network() if network is None else network
    share(network)
    return network


def timed(network: nn.Module, data: list[Any], time: Time = THREE) -> Any:
    """Quantized, its activations observed, with grids of this kind."""
    adapter = Adapter(network, first_row(data[0]))
    convert(network, plan_bits(network, adapter.layers, 32, 4), adapter.sites)
    set_time(network, time)
    observe_activations(network, data, MinMax())
    return network


def rows(*sizes: int) -> list[Any]:
    """Batches of `Network` whose rows have timesteps of all groups, and ranges that follow them."""
    generator = torch.Generator().manual_seed(3)

    def batch(count: int) -> tuple[Tensor, Tensor]:
        t = torch.arange(count) * 1000 // count
        return torch.randn(count, 1, 3, 3, generator=generator) * (1 + t.view(-1, 1, 1, 1) / 50), t

    return [batch(size) for size in sizes]


X = torch.ones(3, 1, 2, 2)
T = torch.tensor([5, 300, 999])


@pytest.mark.parametrize(
    ("args", "kwargs", "expected"),
    [
        ((X, T), {}, [5, 300, 999]),
        ((X, T.view(3, 1)), {}, [5, 300, 999]),
        ((X, torch.tensor(7)), {}, [7, 7, 7]),
        ((X, torch.tensor([0.25])), {}, [0.25] * 3),
        ((X, 7), {}, [7, 7, 7]),
        ((X, 0.5), {}, [0.5] * 3),
        ((X,), {"timestep": T}, [5, 300, 999]),
        ((), {"timestep": T, "hidden_states": X}, [5, 300, 999]),
        ((X,), {"condition": torch.ones(3, 4, 2), "timestep": torch.tensor(7)}, [7, 7, 7]),
        ((X[:1], T[:1]), {}, [5]),
        ((X,), {}, None),
        ((X, torch.tensor([1, 2])), {}, None),
        ((X, torch.ones(3, 4, 2)), {}, None),
        ((X, "7"), {}, None),
    ],
)
def test_the_timestep_of_a_call(args: Any, kwargs: Any, expected: list[float] | None) -> None:
    network = shared()
    network(*args, **kwargs)
    assert network.reader.timesteps() == expected
    assert network.reader.context.state == UNKNOWN, "no longer than the call"


def test_the_timestep_keeps_its_digits() -> None:
    network, t = shared(), torch.tensor([964.0625, 1e-4, 0.1], dtype=torch.float64)
    network(X.half().float(), t)
    assert network.reader.states[-1].timestep.equal(t)


def test_a_call_that_fails_leaves_nothing_behind() -> None:
    network = shared()
    with pytest.raises(RuntimeError):
        network(torch.ones(3, 9, 2, 2), T)
    assert network.reader.context.state == UNKNOWN


def test_a_network_without_readers_is_left_alone(tiny_unet: UNet2DModel) -> None:
    network = quantized(tiny_unet, 4, 8)
    share(network)
    assert not network._forward_pre_hooks and not network._forward_hooks
    assert contexts(network) == []


def test_sharing_again_takes_in_new_readers() -> None:
    network = shared()
    network.more = Reader()
    share(network)
    assert contexts(network) == [network.reader.context]
    assert len(network._forward_pre_hooks) == len(network._forward_hooks) == 1


def test_the_branch_of_a_call() -> None:
    network = shared()
    for name, expected in (("cond", [True] * 3), ("uncond", [False] * 3), ("cond_uncond", None), ("mine", None)):
        with network.cache_context(name):
            network(X, T)
        assert network.reader.branches() == expected
    network(X, T)
    assert network.reader.branches() is None
    with pytest.raises(ZeroDivisionError), network.cache_context("cond"):
        raise ZeroDivisionError
    network(X, T)
    assert network.reader.branches() is None


def test_a_network_of_diffusers_is_told_the_branch_as_before() -> None:
    """`cache_context` is its own method, for caches inside of it."""
    from diffusers import FirstBlockCacheConfig, FluxTransformer2DModel

    with torch.random.fork_rng():
        network: Any = FluxTransformer2DModel(
            in_channels=4, num_layers=1, num_single_layers=1, attention_head_dim=16, num_attention_heads=1,
            joint_attention_dim=8, pooled_projection_dim=8, axes_dims_rope=(4, 4, 8),
        ).eval()  # fmt: skip
    network.reader = Reader()
    network.proj_out.register_forward_hook(lambda _, __, y: network.reader(y))
    share(network)
    network.enable_cache(FirstBlockCacheConfig(threshold=0.0))
    call = {
        "hidden_states": torch.randn(2, 4, 4), "encoder_hidden_states": torch.randn(2, 3, 8), "timestep": torch.full((2,), 0.5),
        "pooled_projections": torch.randn(2, 8), "img_ids": torch.zeros(4, 3), "txt_ids": torch.zeros(3, 3),
    }  # fmt: skip
    with pytest.raises(ValueError, match="cache context"), torch.no_grad():
        network(**call)
    with network.cache_context("uncond", step_index=0), torch.no_grad():
        network(**call)
    assert network.reader.branches() == [False, False]
    assert network.reader.timesteps() == [0.5, 0.5]


def test_the_sampler_tells_the_branch() -> None:
    network, t = shared(), torch.tensor(7).expand(3)
    condition, empty = {"condition": torch.ones(3, 2)}, {"condition": torch.zeros(3, 2)}
    Asked((condition, empty), 2.0).estimate(network, X, t)
    assert [state.branch.tolist() for state in network.reader.states] == [[True] * 3, [False] * 3]
    Asked((condition,), 1.0).estimate(network, X, t)
    assert network.reader.branches() == [True] * 3
    Asked().estimate(network, X, t)
    assert network.reader.branches() is None, "an unconditional model has no branches"
    assert network.reader.timesteps() == [7, 7, 7]


class BranchQuantizer(nn.Module):
    """A grid that is coarser in the unconditional branch."""

    def __init__(self) -> None:
        super().__init__()
        self.context = CallContext()

    def forward(self, x: Tensor) -> Tensor:
        step = torch.where(spread(self.context.conditional(), x), 0.5, 4.0).view(-1, 1, 1, 1)
        return (x / step).round() * step


def test_a_grid_for_each_branch() -> None:
    network: Any = Network()
    network.reader = BranchQuantizer()
    share(network)
    x = torch.randn(3, 1, 4, 4) * 5
    with pytest.raises(UserError, match="cache_context") as refusal:
        network(x, T)
    assert "\n" not in str(refusal.value)
    with network.cache_context("cond"):
        fine = network(x, T)
    with network.cache_context("uncond"):
        coarse = network(x, T)
    assert not torch.equal(fine, coarse)
    mixed = torch.tensor([True, False, True])
    with knowing(network, CallState(None, mixed)):
        y = network.last(network.reader(network.first(x)).tanh())
    assert torch.allclose(y, torch.where(mixed.view(-1, 1, 1, 1), fine, coarse))


def test_a_layer_called_alone_has_to_be_told() -> None:
    network = timed(Network(), rows(8, 8))
    (x, t), *_ = rows(6)
    for refused in (lambda: network.first(x), lambda: network(x), lambda: network(x, torch.ones(6, 4, 2))):
        with pytest.raises(UserError, match="does not know it") as refusal:
            refused()
        assert "\n" not in str(refusal.value)
    expected: list[Tensor] = []
    handle = network.first.register_forward_hook(lambda _, __, y: expected.append(y))
    network(x, t)
    handle.remove()
    with knowing(network.first, CallState(t)):
        assert torch.equal(network.first(x), expected[0])
    assert network.first.input_quantizer.context.state == UNKNOWN


def test_knowing_ends_with_what_was_known_before() -> None:
    network = shared()
    with knowing(network, CallState(T)):
        with pytest.raises(ZeroDivisionError), knowing(network, UNKNOWN):
            raise ZeroDivisionError
        assert network.reader.context.timestep is T
    assert network.reader.context.state == UNKNOWN


def test_a_copy_has_a_context_of_its_own() -> None:
    network = timed(Network(), rows(8, 8))
    share(network)
    other = copy.deepcopy(network)
    (one,), (copied,) = contexts(network), contexts(other)
    assert one is not copied
    x, t = rows(6)[0]
    assert torch.equal(other(x, t), network(x, t))
    assert not torch.equal(other(x, t), other(x, t.flip(0)))
    with other.cache_context("cond"):
        network(x, t)
        assert network.reader.branches() is None
        other(x, t)
    assert other.reader.branches() == [True] * 6
    alone = copy.deepcopy(network.first)
    with knowing(alone, CallState(t)):
        assert contexts(network)[0].state == UNKNOWN


def test_copies_in_threads_do_not_mix() -> None:
    network = timed(Network(), rows(8, 8))
    networks = [copy.deepcopy(network) for _ in range(2)]
    x, t = rows(8)[0]
    calls = [(networks[0], t), (networks[1], t.flip(0))]
    expected = [network(x, t) for _, t in calls]

    def again(number: int) -> bool:
        one, t = calls[number % 2]
        return torch.equal(one(x, t), expected[number % 2])

    def many(number: int) -> bool:
        return all(again(number) for _ in range(200))

    with ThreadPoolExecutor(2) as pool, torch.inference_mode(False):
        assert all(pool.map(many, range(2)))


@pytest.mark.parametrize("backend", ["eager", "aot_eager"])
@pytest.mark.parametrize("time", [THREE, "dynamic"])
def test_a_network_is_compiled_whole(backend: str, time: Time) -> None:
    network = timed(Network(), rows(8, 8), time)
    network.reader = nn.Identity()
    compiled = torch.compile(network, fullgraph=True, backend=backend)
    x, t = rows(6)[0]
    with torch.no_grad():
        for timestep in (t, t.flip(0), t[3].expand(6), t[1], 900):
            assert torch.equal(compiled(x, timestep), network(x, timestep))
    assert [context.state for context in contexts(network)] == ([UNKNOWN] if time == THREE else [])


def test_layers_are_compiled_one_by_one() -> None:
    """As repeated blocks are: what one of them has computed of the context, the next one reads."""
    network = timed(Network(), rows(8, 8))
    compiled = copy.deepcopy(network)
    for layer in (compiled.first, compiled.last):
        layer.compile(fullgraph=True, backend="eager")
    x, t = rows(6)[0]
    with torch.no_grad():
        for timestep in (t, t.flip(0), t[3].expand(6)):
            assert torch.equal(compiled(x, timestep), network(x, timestep))


def test_a_copied_network_has_a_context_of_its_own() -> None:
    network = timed(Network(), rows(8, 8))
    again = copy.deepcopy(network)
    x, t = rows(6)[0]
    assert torch.equal(again(x, t), network(x, t))
    with again.cache_context("cond"):
        network(x, t)
        assert network.reader.branches() is None
    (context,) = contexts(again)
    assert context is not contexts(network)[0]


def stopped(network: nn.Module, block: str, batch: Batch) -> Tensor:
    """A block's one output, in a pass of one batch from the start."""
    seen: list[Tensor] = []
    handle = network.get_submodule(block).register_forward_hook(lambda _, __, y: seen.extend(one.clone() for one in outputs(y)))
    with torch.no_grad():
        call(network, batch)
    handle.remove()
    (found,) = seen
    return found


def transformer() -> nn.Module:
    return DiTTransformer2DModel(
        num_attention_heads=2, attention_head_dim=16, in_channels=4, num_layers=2, sample_size=8, num_embeds_ada_norm=10
    ).eval()


def of_transformer() -> list[Any]:
    labels = torch.randint(0, 10, (8,))
    t = torch.tensor([1, 999, 300, 600, 2, 800, 400, 100])
    parts = zip(torch.randn(8, 4, 8, 8).split(3), t.split(3), labels.split(3), strict=True)
    return [(x, t, {"class_labels": label}) for x, t, label in parts]


@pytest.mark.parametrize("limit", [None, 60_000])
@pytest.mark.parametrize("time", [THREE, "dynamic"])
@pytest.mark.parametrize("kind", ["unet", "transformer"])
def test_streams_are_the_passes_of_whole_networks(
    tiny_unet: UNet2DModel, tmp_path: Path, kind: str, time: Time, limit: int | None
) -> None:
    """Two streams side by side, of batches with other timesteps; and each block run alone with its rows."""
    data = batches(3, 3) if kind == "unet" else of_transformer()
    network: Any = tiny_unet if kind == "unet" else transformer()
    names = list(Adapter(network, first_row(data[0])).blocks)
    timed(network, data, time)
    assert len(names) > 2
    others = data[::-1]
    with (
        RowCache(Budgets(device=limit, scratch=tmp_path), CPU, [network]) as cache,
        streaming(network, names, data, cache) as stream,
        streaming(network, names, others) as beside,
    ):
        for name in names:
            states, sizes = stream.states, stream.sizes
            alone: list[Tensor] = []
            for state, (args, kwargs) in zip(states, stream.calls, strict=True):
                with knowing(network, state) if limit is None else nullcontext(), torch.no_grad():
                    alone.extend(run(network.get_submodule(name), (args, kwargs)) if limit is None else [torch.empty(0)])
            for batch, state, size, (result,), own in zip(data, states, sizes, stream.advance(), alone, strict=True):
                assert len(batch[1]) == size
                if time == THREE:
                    assert state.timestep is not None and state.timestep.tolist() == batch[1].tolist()
                expected = stopped(network, name, batch)
                with cache.lent(result):
                    assert torch.equal(result, expected)
                assert limit is not None or torch.equal(own, expected)
            for batch, (result,) in zip(others, beside.advance(), strict=True):
                assert torch.equal(result, stopped(network, name, batch))
        assert [context.state for context in contexts(network)] == ([UNKNOWN] if time == THREE else [])


@pytest.mark.parametrize("steps", [0, 1, 2])
def test_a_stream_that_is_closed_leaves_nothing_behind(steps: int) -> None:
    network = timed(Network(), rows(8, 8))
    (context,) = contexts(network)
    with knowing(network, CallState(T)):
        with streaming(network, ["first", "last"], rows(4, 5)) as stream:
            for _ in range(steps):
                stream.advance()
                assert context.timestep is T
        assert context.timestep is T
    assert context.state == UNKNOWN


def test_a_stream_knows_the_branch() -> None:
    network = shared()
    with network.cache_context("uncond"), streaming(network, ["first", "last"], rows(4, 5)) as stream:
        branches = [state.branch for state in stream.states]
    assert [branch.tolist() for branch in branches if branch is not None] == [[False] * 4, [False] * 5]


@pytest.mark.parametrize(("length", "expected"), [(3, [5, 300, 999]), (6, [5, 5, 300, 300, 999, 999]), (1, None), (4, None)])
def test_rows_of_a_folded_dimension(length: int, expected: list[int] | None) -> None:
    x = torch.ones(length, 2)
    if expected is None:
        with pytest.raises(UserError, match="static grid") as refusal:
            spread(T, x)
        assert "\n" not in str(refusal.value)
    else:
        assert spread(T, x).tolist() == expected


def test_a_quantizer_shows_its_time() -> None:
    quantizer = ActivationQuantizer(Scheme(8, time=THREE))
    assert "3 timestep groups" in repr(quantizer)
