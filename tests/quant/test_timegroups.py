"""Groups of timesteps, against all that there could be."""

import copy
import math
from itertools import combinations

import pytest
import torch
from diffusers import UNet2DModel
from quant_helpers import quantized, split_sizes
from torch import Tensor

from qdexp.errors import UserError
from qdexp.quant import NormSearch, convert, observe_activations, plan_bits
from qdexp.quant.adapter import Adapter
from qdexp.quant.blocks import first_row
from qdexp.quant.network import activation_quantizers, split
from qdexp.quant.scheme import TimeGroups
from qdexp.quant.timegroups import choose_groups, find_groups, set_time

STEPS = [3.0, 10.0, 11.0, 40.0, 80.0, 81.0, 200.0]


def lost_bits(lo: Tensor, hi: Tensor, groups: list[int]) -> float:
    """Of the grids of these groups, beside a grid for each timestep."""
    total = 0.0
    for group in set(groups):
        own = [number == group for number in groups]
        for low, high in zip(lo[own].T.tolist(), hi[own].T.tolist(), strict=True):
            hull = max(0, *high, 0) - min(0, *low, 0)
            total += sum(math.log2(hull / (max(0, one) - min(0, other))) for one, other in zip(high, low, strict=True))
    return total


def groups_of(time: object) -> list[int]:
    """Of each of `STEPS`."""
    return time.index(torch.tensor(STEPS)).tolist() if isinstance(time, TimeGroups) else [0] * len(STEPS)


@pytest.mark.parametrize("count", range(1, 8))
@pytest.mark.parametrize("kind", ["both signs", "positive", "drifting"])
@pytest.mark.parametrize("quantizers", [1, 3])
def test_no_other_groups_lose_fewer_bits(count: int, kind: str, quantizers: int) -> None:
    ends = torch.randn(7, quantizers).exp(), torch.randn(7, quantizers).exp()
    lo, hi = -ends[0], ends[1]
    if kind == "positive":
        lo = ends[0] / 9  # as after a SiLU or a softmax: the grid holds zero all the same
        hi = lo + ends[1]
    elif kind == "drifting":
        lo, hi = lo.sort(0).values, hi.sort(0).values
    time = choose_groups(STEPS, lo, hi, count)
    found = groups_of(time)
    assert sorted(set(found)) == list(range(count))
    assert found == sorted(found)
    ways = ([sum(place >= cut for cut in cuts) for place in range(7)] for cuts in combinations(range(1, 7), count - 1))
    best = min(lost_bits(lo, hi, way) for way in ways)
    assert lost_bits(lo, hi, found) == pytest.approx(best, abs=1e-9)


def test_edges_lie_halfway() -> None:
    hi = torch.tensor([1.0, 1, 1, 9, 9, 50, 50]).view(7, 1)
    assert choose_groups(STEPS, -hi, hi, 3) == TimeGroups(((11 + 40) / 2, (80 + 81) / 2))
    assert choose_groups(STEPS, -hi, hi, 1) == "static"
    assert choose_groups(STEPS, -1e6 * hi, 1e6 * hi, 3) == choose_groups(STEPS, -hi, hi, 3), "whatever the unit of x"


def test_what_is_zero_does_not_matter() -> None:
    hi = torch.tensor([1.0, 1, 1, 9, 9, 50, 50]).view(7, 1)
    dead, silent = torch.zeros(7, 1), torch.tensor([1.0, 1, 0, 1, 1, 1, 1]).view(7, 1)
    both, twice = torch.cat([hi, dead], 1), torch.cat([hi, hi, silent], 1)
    assert choose_groups(STEPS, -both, both, 3) == choose_groups(STEPS, -hi, hi, 3)
    assert choose_groups(STEPS, -twice, twice, 4) != choose_groups(STEPS, -hi, hi, 3)
    for values in (both, twice):
        assert isinstance(choose_groups(STEPS, -values, values, 7), TimeGroups)


@pytest.mark.parametrize("count", [1, 2, 4, 5])
def test_groups_of_a_network(tiny_unet: UNet2DModel, count: int) -> None:
    """From the ranges of all that its quantizers read, parts of concatenations by themselves; batches of mixed timesteps."""
    steps = [3, 300, 310, 900, 990]
    x = torch.randn(10, 1, 8, 8, generator=torch.Generator().manual_seed(0))
    t = torch.tensor(steps * 2)
    x = x * (1 + t.view(-1, 1, 1, 1) / 100)
    data = list(zip(x.split(4), t.split(4), strict=True))
    adapter, splits = Adapter(tiny_unet, first_row(data[0])), split_sizes(tiny_unet, data[0], "skip")
    network = copy.deepcopy(tiny_unet)
    split(network, splits)
    convert(network, plan_bits(network, adapter.layers, 32, 6), adapter.sites)
    read: dict[str, list[Tensor]] = {}
    for name, quantizer in activation_quantizers(network):
        if not quantizer.fixed:
            quantizer.register_forward_hook(lambda _, args, __, name=name: read.setdefault(name, []).append(args[0]))
    with torch.no_grad():
        network(x, t)
    parts = [
        part for name, (values,) in read.items() for part in values.split(splits.get(name[: -len(".input_quantizer")], 999), 1)
    ]
    lo, hi = (torch.tensor([[getattr(part[t == step], end)() for part in parts] for step in steps]) for end in ("min", "max"))
    time = find_groups(network, data, count)
    assert time == choose_groups(steps, lo, hi, count)
    with torch.no_grad():
        torch.testing.assert_close(network(x, t)[0], tiny_unet(x, t)[0], rtol=1e-4, atol=1e-5, msg="something is rounded")
    set_time(network, time)
    observe_activations(network, data, NormSearch())
    assert {quantizer.scheme.time for _, quantizer in activation_quantizers(network)} == {time, "static"}


def test_too_few_timesteps_in_a_calibration_set(tiny_unet: UNet2DModel) -> None:
    network = quantized(tiny_unet, 8, 8)
    x = torch.randn(2, 1, 8, 8)
    with pytest.raises(UserError, match="of 2; choose 1 to 2"):
        find_groups(network, [(x, torch.tensor([3, 5]))], 3)
    with pytest.raises(UserError, match="need calibration batches"):
        find_groups(network, [(x, torch.tensor([3, 5])), (x,)], 2)


def test_groups_of_a_network_without_observed_grids(tiny_unet: UNet2DModel) -> None:
    assert find_groups(quantized(tiny_unet, 8, 32), [(torch.randn(2, 1, 8, 8), torch.tensor([3, 5]))], 2) == "static"


@pytest.mark.parametrize("count", [0, -1, 8])
def test_as_many_groups_as_timesteps_at_most(count: int) -> None:
    with pytest.raises(UserError, match="choose 1 to 7") as refusal:
        choose_groups(STEPS, -torch.ones(7, 2), torch.ones(7, 2), count)
    assert "\n" not in str(refusal.value)
