from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import accumulate
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.profiler import ProfilerActivity, profile

from qdexp.quant import Scheme, products
from qdexp.quant.affine import qparams_from_range
from qdexp.quant.formats import ActFormat
from qdexp.quant.network import activation_quantizers, set_activation_mode

torch.manual_seed(0)
OPTIONS: dict[str, dict[str, Any]] = {
    "plain": {},
    "scaled": {"scale": 0.3},
    "causal": {"is_causal": True},
    "mask": {"attn_mask": torch.rand(7, 5) < 0.7},
    "mask of rows": {"attn_mask": torch.where(torch.rand(3, 1, 1, 5) < 0.6, 0.0, -1e4)},
    "mask of heads": {"attn_mask": torch.rand(2, 7, 5) < 0.7},
}


def attention() -> products.QuantizedAttention:
    """With grids, all quantizers on."""
    site = products.QuantizedAttention(Scheme(8), Scheme(8), known=True)
    for _, quantizer in activation_quantizers(site):
        if not quantizer.fixed:
            quantizer.set_qparams(qparams_from_range(torch.tensor([-5.0]), torch.tensor([5.0]), quantizer.scheme))
    set_activation_mode(site, "on")
    return site


def factors(rows: int = 3, heads: int = 2, queries: int = 7, keys: int = 5, requires_grad: bool = False) -> list[Any]:
    """Query, key and value."""
    generator = torch.Generator().manual_seed(1)
    return [
        torch.randn(rows, heads, tokens, 8, generator=generator, requires_grad=requires_grad)
        for tokens in (queries, keys, keys)
    ]


def computed(site: products.QuantizedAttention, given: list[Any], **options: Any) -> list[Tensor]:
    """The output and, where it is asked for, the gradients of query, key and value."""
    result = site.attend(*given, **options)
    if result.requires_grad:
        result.square().sum().backward()
    return [result.detach(), *(one.grad for one in given if one.grad is not None)]


@pytest.mark.parametrize("learned", [False, True], ids=["sampled", "learned"])
@pytest.mark.parametrize("name", OPTIONS)
def test_slices_of_heads_and_rows_have_the_same_bits(name: str, learned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = computed(attention(), factors(requires_grad=learned), **OPTIONS[name])
    torch.testing.assert_close(whole[0], F.scaled_dot_product_attention(*factors(), **OPTIONS[name]), rtol=0, atol=0.1)
    for heads in (1, 4):  # of six: the last slice of four is shorter
        monkeypatch.setattr(products, "SLICE", heads * 7 * 5 * 4)
        found = computed(attention(), factors(requires_grad=learned), **OPTIONS[name])
        assert len(found) == (4 if learned else 1)
        assert all(map(torch.equal, found, whole))


def peak(run: Callable[[], object]) -> int:
    """Of the bytes of the tensors that live while it runs, beyond those before."""
    with profile(activities=[ProfilerActivity.CPU], profile_memory=True) as profiler:
        run()
    events = profiler.profiler.kineto_results.events()
    return max(accumulate(event.nbytes() for event in events if event.name() == "[memory]"))


@pytest.mark.parametrize("learned", [False, True], ids=["sampled", "learned"])
def test_no_more_than_a_slice_is_held_at_once(learned: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also where gradients are needed. Whole, there are two tensors of the size of the scores, or four."""
    scores = 4 * 2 * 8 * 256 * 256
    found = []
    for slices in (1, 16):
        monkeypatch.setattr(products, "SLICE", scores // slices)
        given = factors(rows=2, heads=8, queries=256, keys=256, requires_grad=learned)
        found.append(peak(partial(computed, attention(), given)) / scores)
    whole, sliced = found
    assert whole < (4.5 if learned else 2.2)
    assert sliced < whole / 6


@pytest.mark.parametrize("time", ["static", "dynamic"])
def test_a_grid_that_is_found_from_all_of_p_sees_all_of_it(time: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(products, "SLICE", 1)
    site = products.QuantizedAttention(None, Scheme(8, time=time), known=False)
    seen: list[torch.Size] = []
    site.probability.register_forward_pre_hook(lambda _, args: seen.append(args[0].shape))
    set_activation_mode(site, "observe" if time == "static" else "on")
    site.attend(*factors())
    assert seen == [(3, 2, 7, 5)]


@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize(
    "act", [ActFormat(4, "int", "per_group", 16, scale="bfloat16"), ActFormat(4, "e2m1", "per_group", 32, scale="e8m0"),
            ActFormat(4, "e2m1", "per_group", 16, scale="e4m3")],
    ids=["int4_g16", "mxfp4", "nvfp4"],
)  # fmt: skip
def test_tokens_that_a_group_does_not_divide_are_as_if_padded_with_zeros(act: ActFormat, symmetric: bool) -> None:
    """As torchao does: the last of 49 tokens stands alone in its group."""
    scheme = replace(act, time="dynamic", symmetric=symmetric or act.number != "int").scheme(4)
    site = products.QuantizedAttention(scheme, Scheme(8), known=True)
    set_activation_mode(site, "on")
    value = torch.randn(2, 3, 49, 8)
    found = site.value(value)
    assert torch.equal(found, site.value(F.pad(value, (0, 0, 0, 15)))[:, :, :49])
    last = (found - value)[:, :, 48:].norm() / value[:, :, 48:].norm()
    assert last < (0.01 if act.number == "int" else 0.3)
