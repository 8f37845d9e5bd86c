"""Activation quantizers whose grid depends on the timestep, or is computed at the call."""

from dataclasses import replace
from typing import Any

import pytest
import torch
from quant_helpers import batches, quantized
from torch import Tensor, nn

from qdexp.errors import UserError
from qdexp.quant import (
    MinMax,
    NormSearch,
    PerChannel,
    QParams,
    RangeEstimator,
    Scheme,
    Split,
    fake_quantize,
    observe_activations,
    qparams_from_range,
)
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.affine import qparams_of_rows
from qdexp.quant.context import CallState
from qdexp.quant.coverage import known_bits
from qdexp.quant.layers import to_quantized
from qdexp.quant.macs import count
from qdexp.quant.network import activation_quantizers
from qdexp.quant.scheme import Granularity, PerTensor, TimeGroups
from qdexp.quant.timegroups import set_time

TIME = TimeGroups((10.0, 20.0))
T = torch.tensor([20, 3, 30, 10, 11, 25])
GROUPS = [1, 0, 2, 0, 1, 2]
GRANULARITIES = [PerTensor(), Split((3, 5))]


def rows(*shape: int) -> Tensor:
    """A row for each timestep of `T`, with ranges that follow it, and the parts of a concatenation that differ."""
    x = torch.randn(len(T), *shape) * T.view(-1, *[1] * len(shape))
    if len(shape) > 1:
        x[:, :3] *= 9
    return x


def timed(scheme: Scheme, *seen: Tensor, t: Tensor = T, estimator: RangeEstimator = MinMax()) -> ActivationQuantizer:  # noqa: B008
    """A quantizer that has observed these tensors, all at the timesteps `t`."""
    quantizer = ActivationQuantizer(scheme)
    observer = quantizer.start(estimator)
    knows(quantizer, t)
    for _ in range(observer.passes):
        for x in seen:
            assert quantizer(x) is x
        observer.end_pass()
    quantizer.finish()
    return quantizer


def knows(quantizer: ActivationQuantizer, t: Tensor) -> ActivationQuantizer:
    assert quantizer.context is not None
    quantizer.context.know(CallState(t))
    return quantizer


def alone(scheme: Scheme, x: Tensor, estimator: RangeEstimator = MinMax()) -> ActivationQuantizer:  # noqa: B008
    """A static quantizer of the same grid that has seen nothing else."""
    quantizer = ActivationQuantizer(replace(scheme, time="static"))
    observer = quantizer.start(estimator)
    for _ in range(observer.passes):
        quantizer(x)
        observer.end_pass()
    quantizer.finish()
    return quantizer


def expected(scheme: Scheme, x: Tensor, estimator: RangeEstimator = MinMax()) -> Tensor:  # noqa: B008
    """Every row, by the static quantizer of its group."""
    static = [alone(scheme, x[[number == group for number in GROUPS]], estimator) for group in range(3)]
    return torch.cat([static[group](row[None]) for group, row in zip(GROUPS, x, strict=True)])


@pytest.mark.parametrize(("t", "group"), [(-5, 0), (10, 0), (10.001, 1), (20, 1), (20.001, 2), (1e9, 2)])
def test_a_group_holds_its_upper_edge(t: float, group: int) -> None:
    for dtype in (torch.float32, torch.float64):
        assert TIME.index(torch.tensor([t], dtype=dtype)).tolist() == [group]
    assert TIME.index(torch.tensor([int(t)])).tolist() == [TIME.index(torch.tensor([float(int(t))])).item()]
    assert len(TIME) == 3


def test_edges_keep_their_digits_where_the_network_computes_in_few_bits() -> None:
    time = TimeGroups((500.5, 502.0))
    assert time.index(torch.tensor([500.0, 502.0, 504.0], dtype=torch.bfloat16)).tolist() == [0, 1, 2]


@pytest.mark.parametrize("edges", [(), (2.0, 1.0), (1.0, 1.0), (1.0, float("nan")), (float("inf"),)])
def test_edges_ascend(edges: tuple[float, ...]) -> None:
    with pytest.raises(UserError, match="ascending") as refusal:
        TimeGroups(edges)
    assert "\n" not in str(refusal.value)


@pytest.mark.parametrize("granularity", [PerChannel(), Split((1, 2), PerChannel())])
def test_no_grid_for_each_channel(granularity: Granularity) -> None:
    with pytest.raises(UserError, match="per_tensor"):
        Scheme(8, granularity, time="dynamic")


def test_weights_stay_static() -> None:
    with pytest.raises(ValueError, match="static"):
        to_quantized(nn.Linear(2, 2), Scheme(8, time=TIME), None)


@pytest.mark.parametrize("scheme", [Scheme(8), Scheme(4, Split((1, 2)), True, "dynamic"), Scheme(5, time=TimeGroups((1, 2.5)))])
def test_a_scheme_is_plain_values(scheme: Scheme) -> None:
    plain = scheme.to_dict()
    assert Scheme.from_dict(plain) == scheme
    assert ("time" in plain) == (scheme.time != "static")
    assert hash(Scheme.from_dict(plain)) == hash(scheme)


@pytest.mark.parametrize("time", [{"kind": "groups", "edges": [2.0, 1.0]}, {"kind": "sometimes"}, {"kind": "groups"}])
def test_a_time_that_is_none(time: dict[str, Any]) -> None:
    with pytest.raises((UserError, ValueError, KeyError)):
        Scheme.from_dict(Scheme(8).to_dict() | {"time": time})


@pytest.mark.parametrize("estimator", [MinMax(), NormSearch()])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_rows_of_several_timesteps(
    granularity: Granularity, symmetric: bool, estimator: RangeEstimator, memory_format: torch.memory_format
) -> None:
    scheme = Scheme(4, granularity, symmetric, TIME)
    x = rows(8, 5, 5).contiguous(memory_format=memory_format)
    quantizer = timed(scheme, x, estimator=estimator)
    assert quantizer.scale.shape == quantizer.zero_point.shape == (3, 1 if isinstance(granularity, PerTensor) else 2)
    y = quantizer(x)
    assert torch.equal(y, expected(scheme, x, estimator))
    assert y.stride() == x.stride()
    assert not torch.equal(y, alone(scheme, x, estimator)(x))
    for t, row, result in zip(T, x, y, strict=True):  # in a call of its own, and beside others of its timestep
        assert torch.equal(knows(quantizer, t[None])(row[None])[0], result)
        assert torch.equal(knows(quantizer, t.expand(2))(torch.stack([row, x[0]]))[0], result)


def test_the_same_bits_whether_rows_share_a_timestep_or_not() -> None:
    quantizer, x = timed(Scheme(4, time=TIME), rows(8, 5, 5)), rows(8, 5, 5)
    together = knows(quantizer, torch.tensor(15).expand(6))(x)
    assert torch.equal(knows(quantizer, torch.full((6,), 15))(x), together)
    static = ActivationQuantizer(Scheme(4))
    static.set_qparams(QParams(quantizer.scale[1], quantizer.zero_point[1]))
    static.mode = "on"
    assert torch.equal(together, static(x))


def test_rows_with_heads() -> None:
    """[rows, heads, tokens, d], and heads folded into the first dimension."""
    scheme, x = Scheme(4, time=TIME), rows(2, 7, 4)
    quantizer = timed(scheme, x)
    assert torch.equal(quantizer(x), expected(scheme, x))
    assert torch.equal(quantizer(x.flatten(0, 1)), expected(scheme, x).flatten(0, 1))
    folded = timed(scheme, x.flatten(0, 1))
    assert torch.equal(folded.scale, quantizer.scale)
    with pytest.raises(UserError, match=r"shape \[9, 2\], of which the 6 rows") as refusal:
        quantizer(torch.ones(9, 2))
    assert "\n" not in str(refusal.value)
    knows(quantizer, torch.tensor(15).expand(6))(torch.ones(9, 2))  # rows of one timestep need not be told apart


@pytest.mark.parametrize("shape", [(), (4,), (3, 4)])
def test_rows_of_vectors(shape: tuple[int, ...]) -> None:
    scheme, x = Scheme(6, time=TIME), rows(*shape)
    assert torch.equal(timed(scheme, x)(x), expected(scheme, x))


@pytest.mark.parametrize("estimator", [MinMax(), NormSearch()])
def test_a_group_without_rows_has_the_range_of_the_nearest(estimator: RangeEstimator) -> None:
    scheme, x = Scheme(4, time=TimeGroups((0, 10, 20, 30, 40, 50))), rows(4)
    t = torch.tensor([15, 15, 15, 45, 45, 45])  # groups 2 and 5 of 0 .. 6
    quantizer = timed(scheme, x, t=t, estimator=estimator)
    low, high = (alone(scheme, part, estimator).scale for part in x.split(3))
    assert torch.equal(quantizer.scale, torch.stack([low, low, low, low, high, high, high]))


def test_nothing_observed_is_an_error() -> None:
    quantizer = ActivationQuantizer(Scheme(4, time=TIME))
    observer = quantizer.start(NormSearch())
    observer.end_pass()
    with pytest.raises(ValueError, match="no values"):
        quantizer.finish()


@pytest.mark.parametrize("granularity", GRANULARITIES)
@pytest.mark.parametrize("same", [False, True])
def test_gradients_reach_the_scales_of_the_timesteps(granularity: Granularity, same: bool) -> None:
    """Those of a static quantizer for each group, summed over its rows; others have none."""
    scheme, x = Scheme(4, granularity, time=TIME), rows(8, 3, 3)
    quantizer = timed(scheme, 0.7 * x)  # some of x is beyond the grid
    weight = torch.randn_like(x)
    groups = [1] * 6 if same else GROUPS
    knows(quantizer, torch.tensor(15).expand(6) if same else T)
    inputs, scale = x.clone().requires_grad_(), quantizer.scale.clone().requires_grad_()
    result = torch.func.functional_call(quantizer, {"scale": scale}, (inputs,))
    assert torch.equal(result, quantizer(x))
    (result * weight).sum().backward()
    found = torch.zeros_like(scale)
    for group in set(groups):
        own = [number == group for number in groups]
        static = ActivationQuantizer(Scheme(4, granularity))
        static.set_qparams(QParams(quantizer.scale[group], quantizer.zero_point[group]))
        static.mode = "on"
        part, learned = x[own].requires_grad_(), static.scale.clone().requires_grad_()
        (torch.func.functional_call(static, {"scale": learned}, (part,)) * weight[own]).sum().backward()
        assert learned.grad is not None and inputs.grad is not None and part.grad is not None
        found[group] = learned.grad
        assert torch.equal(inputs.grad[own], part.grad)
    assert scale.grad is not None
    torch.testing.assert_close(scale.grad, found, rtol=1e-4, atol=1e-3)
    assert scale.grad[[*set(groups)]].ne(0).all()


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("granularity", GRANULARITIES)
def test_a_dynamic_grid_spans_each_row_alone(granularity: Granularity, symmetric: bool) -> None:
    scheme, x = Scheme(4, granularity, symmetric, "dynamic"), rows(8, 5, 5)
    quantizer = ActivationQuantizer(scheme)
    quantizer.mode = "on"
    assert not quantizer.observed
    y = quantizer(x)
    parts = [x] if isinstance(granularity, PerTensor) else list(x.split((3, 5), 1))
    slow = []
    for part in parts:
        grids = [qparams_from_range(row.min()[None], row.max()[None], scheme) for row in part]
        slow.append(torch.stack([fake_quantize(row, grid, Scheme(4, symmetric=symmetric)) for row, grid in zip(part, grids)]))  # noqa: B905
    assert torch.equal(y, torch.cat(slow, 1))
    assert torch.equal(quantizer(x[2:3]), y[2:3]), "whatever its company"
    assert torch.equal(quantizer(x.contiguous(memory_format=torch.channels_last)), y)


def test_gradients_pass_through_a_dynamic_grid() -> None:
    quantizer = ActivationQuantizer(Scheme(4, time="dynamic"))
    quantizer.mode = "on"
    x = rows(8).requires_grad_()
    y = quantizer(x)
    assert torch.equal(y, quantizer(x.detach()))
    y.sum().backward()
    assert x.grad is not None and x.grad.eq(1).all()


def test_a_dynamic_grid_of_nothing_but_zeros() -> None:
    x = torch.zeros(2, 3)
    x[1] = torch.tensor([1.0, 0.0, -1.0])
    scheme = Scheme(2, symmetric=True, time="dynamic")
    assert torch.equal(fake_quantize(x, qparams_of_rows(x, scheme), scheme), x)


@pytest.mark.parametrize("time", ["dynamic", TIME])
def test_a_fixed_range_is_static_whatever_the_time(time: Any) -> None:
    quantizer = ActivationQuantizer(Scheme(8, time=time), fixed_range=(0.0, 1.0))
    assert quantizer.scheme == Scheme(8)
    assert quantizer.context is None
    quantizer.mode = "on"
    x = torch.rand(3, 4)
    assert torch.equal(quantizer(x), fake_quantize(x, QParams(quantizer.scale, quantizer.zero_point), Scheme(8)))


@pytest.mark.parametrize("time", ["dynamic", TimeGroups((300, 600))])
def test_a_network_is_given_another_time(tiny_unet: nn.Module, time: Any) -> None:
    """It is off until it is observed; what is counted of it stays; and it can be given its old grids again."""
    network, data = quantized(tiny_unet, 4, 8), batches()
    with torch.no_grad():
        before = network(*data[0])[0]
    known, products = known_bits(network), count(network, (data[0][0][:1], data[0][1][:1]))
    set_time(network, time)
    assert {quantizer.mode for _, quantizer in activation_quantizers(network) if not quantizer.fixed} == {"off"}
    observe_activations(network, data, NormSearch())
    times = {quantizer.scheme.time for _, quantizer in activation_quantizers(network)}
    assert times == {"static", time}, "the softmax's grid is known"
    assert known_bits(network) == known
    assert count(network, (data[0][0][:1], data[0][1][:1])) == products
    with torch.no_grad():
        assert not torch.equal(network(*data[0])[0], before)
    set_time(network, "static")
    observe_activations(network, data, NormSearch())
    with torch.no_grad():
        assert torch.equal(network(*data[0])[0], before)
