"""Layers in integers against the same layers in simulated arithmetic."""

from collections.abc import Callable
from copy import deepcopy
from typing import Any

import pytest
import torch
from backend_networks import NEEDS_VNNI
from torch import Tensor, nn

from qdexp.backends.integer.kernels import Grid, levels, levels_of_rows
from qdexp.backends.integer.layers import lacks, to_integer
from qdexp.live import Live, own_bytes
from qdexp.quant import PerChannel, PerTensor, QParams, Scheme, Split
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.affine import quantize
from qdexp.quant.context import CallState, knowing
from qdexp.quant.granularity import PerGroup
from qdexp.quant.layers import QuantizedLayer, to_quantized
from qdexp.quant.low_rank import LowRank
from qdexp.quant.scheme import TimeGroups
from qdexp.quant.transforms import Smoothing

Layer = nn.Conv1d | nn.Conv2d | nn.Linear
LAYERS: dict[str, tuple[Callable[[], Layer], tuple[int, ...]]] = {
    "linear": (lambda: nn.Linear(6, 5), (3, 4, 6)),
    "vector": (lambda: nn.Linear(6, 5, bias=False), (3, 6)),
    "point": (lambda: nn.Conv2d(4, 5, 1), (2, 4, 5, 5)),
    "padded": (lambda: nn.Conv2d(4, 5, 3, padding=1), (2, 4, 5, 6)),
    "uneven": (lambda: nn.Conv2d(4, 5, (3, 2), padding=(2, 1), stride=(1, 2), dilation=(2, 1), bias=False), (2, 4, 7, 6)),
    "same": (lambda: nn.Conv2d(4, 5, 3, padding="same"), (2, 4, 5, 5)),
    "sequence": (lambda: nn.Conv1d(4, 5, 3, padding=2, stride=2), (2, 4, 9)),
    "one image": (lambda: nn.Conv2d(4, 5, 3, padding=1), (4, 5, 6)),
    "grouped": (lambda: nn.Conv2d(4, 6, 3, padding=1, groups=2), (2, 4, 5, 5)),
}
BITS = range(2, 9)


pytestmark = NEEDS_VNNI


def quantized(
    layer: Layer, weight: Scheme, act: Scheme, *, zero_points: int = 0, exact: bool = True, parts: tuple[int, ...] | None = None
) -> QuantizedLayer:
    """A layer with random integers. ``exact``: with scales of which floating point loses nothing. ``zero_points``: those of the
    input, of each row."""
    made = to_quantized(layer, weight, act)
    made.parts = parts
    own = sum(weight.granularity.groups(made.weight.shape))
    lo, hi = int(weight.qmin), int(weight.qmax)
    scale = 2.0 ** torch.randint(-3, 2, (own,)) if exact else torch.rand(own) + 0.1
    zero_point = torch.zeros(own, dtype=torch.int32) if weight.symmetric else torch.randint(lo, hi + 1, (own,)).int()
    codes = torch.randint(lo, hi + 1, made.weight.shape, dtype=weight.dtype)
    made.set_weight(codes, QParams(scale, zero_point))
    if isinstance(bias := made.bias, nn.Parameter):
        bias.data = torch.randint(-9, 9, bias.shape).float() if exact else torch.randn_like(bias)
    quantizer = made.input_quantizer
    assert isinstance(quantizer, ActivationQuantizer)
    if act.time != "dynamic":
        shape = quantizer.scale.shape
        found = torch.zeros(shape) if act.symmetric else torch.randint(int(act.qmin), int(act.qmax) + 1, shape)
        scales = 2.0 ** torch.randint(-2, 1, shape) if exact else torch.rand(shape) / 9 + 0.01
        quantizer.set_qparams(QParams(scales, found.int()))
    quantizer.mode = "on"
    return made.eval().requires_grad_(False)


def both(layer: QuantizedLayer, x: Tensor) -> tuple[Tensor, Tensor]:
    """What it computes simulated, and in integers."""
    expected = layer(x)
    assert lacks(layer) is None
    return expected, to_integer(deepcopy(layer))(x)


@pytest.mark.parametrize("kind", LAYERS)
@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_the_integers_are_the_same(kind: str, bits: int, symmetric: bool) -> None:
    """Scales are powers of two, and sums small enough for floating point to be exact: not a bit may differ."""
    make, shape = LAYERS[kind]
    symmetric_weight = symmetric or kind == "grouped"
    layer = quantized(make(), Scheme(bits, PerChannel(), symmetric_weight), Scheme(10 - bits, symmetric=symmetric))
    for spread in (1, 100):  # inside the grid, and far beyond it
        expected, found = both(layer, spread * torch.randn(shape))
        assert torch.equal(found, expected)
    x = torch.zeros(shape)
    assert torch.equal(*both(layer, x))


@pytest.mark.parametrize("kind", ["padded", "linear"])
@pytest.mark.parametrize("granularity", [PerChannel(), PerTensor()])
def test_any_scales(kind: str, granularity: PerChannel | PerTensor) -> None:
    make, shape = LAYERS[kind]
    expected, found = both(quantized(make(), Scheme(8, granularity), Scheme(8), exact=False), torch.randn(shape))
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=2e-6 * float(expected.abs().max()))


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("kind", [nn.Conv1d, nn.Conv2d])
def test_parts(bits: int, kind: type[nn.Conv1d | nn.Conv2d]) -> None:
    sizes = (3, 1, 2)
    shape = (2, 6, 7, 7)[: 4 if kind is nn.Conv2d else 3]
    weight, act = Scheme(bits, Split(sizes, PerChannel())), Scheme(8, Split(sizes))
    expected, found = both(quantized(kind(6, 5, 3, padding=1), weight, act, parts=sizes), torch.randn(shape))
    assert torch.equal(found, expected)


@pytest.mark.parametrize("kind", ["linear", "vector", "padded"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("t", [[1.0], [1.0, 9.0, 1.0]])
def test_groups_of_timesteps(kind: str, symmetric: bool, t: list[float]) -> None:
    make, (_, *shape) = LAYERS[kind]
    act = Scheme(6, symmetric=symmetric, time=TimeGroups((5.0,)))
    layer, x = quantized(make(), Scheme(4, PerChannel()), act), torch.randn(len(t), *shape)
    assert isinstance(layer.input_quantizer, ActivationQuantizer)
    layer.input_quantizer.scale.copy_(torch.tensor([[0.25], [0.5]]))
    lowered = to_integer(deepcopy(layer))
    with knowing(layer, CallState(torch.tensor(t))), knowing(lowered, CallState(torch.tensor(t))):
        assert torch.equal(lowered(x), layer(x))


@pytest.mark.parametrize("kind", ["linear", "vector", "padded"])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("weight_symmetric", [False, True])
@pytest.mark.parametrize("token", [False, True])
def test_dynamic_grids(kind: str, symmetric: bool, weight_symmetric: bool, token: bool) -> None:
    make, (rows, *shape) = LAYERS[kind]
    if token:
        make, shape = (lambda: nn.Linear(32, 5)), [*shape[:-1], 32]
    granularity = PerGroup(None) if token else PerTensor()
    act = Scheme(8, granularity, symmetric, "dynamic")
    layer = quantized(make(), Scheme(8, PerChannel(), weight_symmetric), act, exact=False)
    x = torch.randn(rows, *shape) * torch.logspace(-1, 1, rows).view(-1, *[1] * len(shape))
    if token and kind == "padded":
        pytest.skip("a scale for each place of an image")
    expected, found = both(layer, x)
    size = expected.flatten(1).abs().amax(1).view(-1, *[1] * len(shape))
    torch.testing.assert_close(found / size, expected / size, rtol=1e-5, atol=2e-6)
    alone = torch.cat([to_integer(deepcopy(layer))(row) for row in x.split(1)])
    torch.testing.assert_close(found / size, alone / size, rtol=1e-6, atol=1e-6)  # no row knows of the others


def test_transforms_and_branches_stay_in_floating_point() -> None:
    layer = quantized(nn.Linear(6, 5), Scheme(4, PerChannel()), Scheme(8))
    layer.transforms.append(Smoothing.by(torch.tensor([1.0, 2.0, 4.0, 1.0, 0.5, 8.0]), -1))
    layer.branch = LowRank(torch.randn(5, 2), torch.randn(2, 6))
    expected, found = both(layer, torch.randn(3, 6))
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("bits", BITS)
@pytest.mark.parametrize("symmetric", [False, True])
def test_levels_are_those_of_every_other_backend(bits: int, symmetric: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Ties, values beyond the grid and beyond any integer, and a number of elements that no vector divides."""
    scheme = Scheme(bits, symmetric=symmetric)
    for scale, zero_point in (
        (0.25, 0),
        (0.1, 1),
        (0.013, 2),
        (0.1, scheme.qmax // 2),
        (0.1, scheme.qmax // 2 + 1),
        (0.3, scheme.qmax),
    ):
        grid = QParams(torch.tensor([scale]), torch.tensor([0 if symmetric else int(zero_point)], dtype=torch.int32))
        ties = (torch.arange(-300, 301) / 2) * scale
        x = torch.cat([ties, torch.randn(10_001) * 30 * scale, torch.tensor([torch.inf, -torch.inf, 1e30, -1e30, 3e9, -3e9])])
        x = torch.cat([x, torch.nextafter(ties, torch.tensor(torch.inf)), torch.nextafter(ties, torch.tensor(-torch.inf))])
        expected = quantize(x, grid, scheme).int() - int(scheme.qmin)
        assert torch.equal(levels(x, Grid.of(*grid, scheme)).int(), expected)
        assert torch.equal(levels_of_rows(x, QParams(*(values.expand(len(x)) for values in grid)), scheme).int(), expected)
        monkeypatch.delattr(torch, "quantize_per_tensor")
        assert torch.equal(levels(x, Grid.of(*grid, scheme)).int(), expected)
        monkeypatch.undo()


def test_levels_of_a_slice_of_channels_lie_in_memory_as_it_does() -> None:
    x = torch.randn(2, 8, 3, 3).contiguous(memory_format=torch.channels_last)[:, :5]
    grid = QParams(torch.tensor([0.1]), torch.tensor([7]))
    assert torch.equal(levels(x, Grid.of(*grid, Scheme(8))), quantize(x, grid, Scheme(8)))


@pytest.mark.parametrize("kind", ["linear", "padded"])
@pytest.mark.parametrize("time", ["static", "dynamic"])
def test_a_broken_input_is_seen_to_be_one(kind: str, time: Any) -> None:
    make, shape = LAYERS[kind]
    layer = to_integer(quantized(make(), Scheme(4, PerChannel()), Scheme(8, time=time)))
    x = torch.randn(shape)
    assert layer(x).isfinite().all()
    x[0, 0] = torch.nan
    assert layer(x).isnan().any()


@pytest.mark.parametrize("kind", ["linear", "padded"])
def test_memory_is_counted(kind: str) -> None:
    make, shape = LAYERS[kind]
    layer, x = quantized(make(), Scheme(4, PerChannel()), Scheme(8)), torch.randn(shape)
    simulated, size = own_bytes(layer), layer.weight.numel()
    lowered = to_integer(layer)
    with Live() as live:
        lowered(x)
    assert live.peak > 0
    copies = 2 if kind == "linear" else 3  # the integers, those that are laid out, and of a convolution those to lay out anew
    assert own_bytes(lowered) == simulated - (1 + 4) * size + copies * size


def test_shapes_may_change_from_call_to_call() -> None:
    make, _ = LAYERS["padded"]
    layer = quantized(make(), Scheme(8, PerChannel()), Scheme(8))
    lowered = to_integer(deepcopy(layer))
    for shape in ((2, 4, 5, 5), (1, 4, 5, 5), (2, 4, 9, 3), (2, 4, 5, 5)):
        x = torch.randn(shape)
        assert torch.equal(lowered(x), layer(x))


def test_it_stays_the_same_object_with_hooks_state_and_copies() -> None:
    class Own(nn.Conv2d):
        pass

    layer = quantized(Own(4, 5, 3, padding=1), Scheme(4, PerChannel()), Scheme(8))
    state, x, calls = layer.state_dict(), torch.randn(2, 4, 5, 5), []
    layer.register_forward_hook(lambda *_: calls.append(1))
    lowered = to_integer(layer)
    assert lowered is layer
    assert isinstance(lowered, Own)
    y = lowered(x)
    assert calls == [1]
    assert torch.equal(deepcopy(lowered)(x), y)
    assert lowered.state_dict().keys() == state.keys()
    assert all(torch.equal(value, state[name]) for name, value in lowered.state_dict().items())
    assert "int8 kernel" in repr(lowered)
    half = lowered.half()(x.half())
    assert half.dtype == torch.float16
    torch.testing.assert_close(half.float(), y, rtol=1e-2, atol=1e-1)


def beside_zero(act: Scheme) -> QuantizedLayer:
    """With a grid that does not hold 0, as other libraries may find one."""
    layer = quantized(nn.Linear(4, 4), Scheme(4, PerChannel()), act)
    layer.input_quantizer.zero_point.fill_(300)  # type: ignore[operator]
    return layer


LEFT: dict[str, tuple[Callable[[], QuantizedLayer], str]] = {
    "groups": (
        lambda: quantized(nn.Linear(32, 4), Scheme(4, PerGroup(16, 1)), Scheme(8)),
        "scales of groups",
    ),
    "pixels": (
        lambda: quantized(nn.Conv2d(32, 4, 1), Scheme(4, PerChannel()), Scheme(8, PerGroup(None, 1), time="dynamic")),
        "a scale for each place",
    ),
    "sixteen": (lambda: quantized(nn.Linear(4, 4), Scheme(4, PerChannel()), Scheme(16)), "more than 8 bits"),
    "weight": (lambda: to_quantized(nn.Linear(4, 4), None, Scheme(8)), "the weight is in floating point"),
    "reflect": (
        lambda: quantized(nn.Conv2d(4, 4, 3, padding=1, padding_mode="reflect"), Scheme(4, PerChannel()), Scheme(8)),
        "padding that is not zeros",
    ),
    "no zero": (lambda: beside_zero(Scheme(8)), "a zero point that is no level"),
    "one side": (
        lambda: quantized(nn.Conv2d(4, 4, 2, padding="same"), Scheme(4, PerChannel()), Scheme(8)),
        "padding that is not zeros on both sides",
    ),
}


@pytest.mark.parametrize("kind", LEFT)
def test_what_no_kernel_takes_is_told(kind: str) -> None:
    make, told = LEFT[kind]
    assert told in str(lacks(make()))


def test_an_input_in_floating_point_is_told() -> None:
    layer = to_quantized(nn.Linear(4, 4), Scheme(4, PerChannel()), None)
    layer.set_weight(torch.ones(4, 4, dtype=torch.uint8), QParams(torch.ones(4), torch.zeros(4, dtype=torch.int32)))
    assert lacks(layer) == "the input is in floating point"
