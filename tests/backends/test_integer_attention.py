"""Attention on integers against simulated attention."""

from copy import deepcopy
from typing import Any, cast

import pytest
import torch
from torch import Tensor

from qdexp.backends.integer import attention
from qdexp.backends.integer.attention import IntegerAttention, to_integer_attention
from qdexp.quant import QParams, Scheme
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.context import CallState, knowing
from qdexp.quant.granularity import PerGroup
from qdexp.quant.products import ACT, PROBABILITY, QuantizedAttention, QuantizedProduct
from qdexp.quant.scheme import TimeGroups


def quantized(act: Scheme, softmax: Scheme | None = None, known: bool = True) -> QuantizedAttention:
    """With grids that a normal distribution fills."""
    made = QuantizedAttention(act, softmax or Scheme(8), known)
    for quantizer in made.children():
        assert isinstance(quantizer, ActivationQuantizer)
        if quantizer.observed:
            scale = torch.full_like(quantizer.scale, 6 / (act.qmax - act.qmin))
            quantizer.set_qparams(QParams(scale, torch.full_like(quantizer.zero_point, int(act.qmin + act.qmax) // 2)))
        quantizer.mode = "on"
    return made


def factors(rows: int = 2) -> list[Tensor]:
    return [torch.randn(rows, 3, tokens, 8) for tokens in (10, 7, 7)]


def both(made: QuantizedAttention, *given: Any, **options: Any) -> tuple[Tensor, Tensor]:
    lowered = deepcopy(made)
    assert to_integer_attention(lowered)
    assert isinstance(lowered, IntegerAttention)
    return made.attend(*given, **options), lowered.attend(*given, **options)


@pytest.mark.parametrize("bits", [2, 4, 6, 8])
@pytest.mark.parametrize("symmetric", [False, True])
@pytest.mark.parametrize("softmax", [4, 8])
@pytest.mark.parametrize("scale", [None, 0.7])
def test_it_computes_what_simulated_attention_does(bits: int, symmetric: bool, softmax: int, scale: float | None) -> None:
    expected, found = both(quantized(Scheme(bits, symmetric=symmetric), Scheme(softmax)), *factors(), scale=scale)
    assert found.shape == expected.shape
    differ = (found - expected).abs() > 1e-5 * expected.abs().max()
    assert differ.float().mean() < 0.05  # where a probability lies between two levels, a last bit decides


def test_pieces_change_no_bit(monkeypatch: pytest.MonkeyPatch) -> None:
    """Sums of integers are exact in any order."""
    made, given = quantized(Scheme(8)), factors()
    _, expected = both(made, *given)
    for piece in (1, 20, 70, 150):
        monkeypatch.setattr(attention, "PIECE", piece)
        assert torch.equal(both(made, *given)[1], expected)


CALLS: dict[str, dict[str, Any]] = {
    "mask": {"attn_mask": torch.ones(10, 7, dtype=torch.bool).tril(2)},
    "causal": {"is_causal": True},
}


@pytest.mark.parametrize("options", CALLS.values(), ids=CALLS)
def test_other_calls_run_as_in_simulated_arithmetic(options: dict[str, Any]) -> None:
    assert torch.equal(*both(quantized(Scheme(8)), *factors(), **options))


@pytest.mark.parametrize("t", [[1.0], [1.0, 9.0]])
def test_groups_of_timesteps(t: list[float]) -> None:
    made = quantized(Scheme(8, time=TimeGroups((5.0,))))
    cast(ActivationQuantizer, made.query).scale[1] *= 2
    lowered = deepcopy(made)
    assert to_integer_attention(lowered)
    given = factors(len(t))
    with knowing(made, CallState(torch.tensor(t))), knowing(lowered, CallState(torch.tensor(t))):
        expected, found = cast(Any, made).attend(*given), cast(Any, lowered).attend(*given)
    assert ((found - expected).abs() > 1e-5 * expected.abs().max()).float().mean() < 0.05


def test_a_grid_of_probabilities_that_ends_below_one() -> None:
    made = quantized(Scheme(8), Scheme(4), known=False)
    cast(ActivationQuantizer, made.probability).set_qparams(QParams(torch.tensor([0.02]), torch.tensor([0])))
    expected, found = both(made, *(3 * x for x in factors()))
    assert ((found - expected).abs() > 1e-5 * expected.abs().max()).float().mean() < 0.05


def test_a_broken_factor_is_seen_to_be_one() -> None:
    given = factors()
    given[1][0, 0, 0, 0] = torch.nan
    assert both(quantized(Scheme(8)), *given)[1].isnan().any()


def test_what_is_no_such_attention_is_left() -> None:
    for act in (Scheme(8, time="dynamic"), Scheme(8, PerGroup(None), time="dynamic"), Scheme(16)):
        assert not to_integer_attention(quantized(act))
    assert not to_integer_attention(QuantizedAttention(Scheme(8), None, True))
    assert not to_integer_attention(QuantizedProduct((ACT, PROBABILITY), Scheme(8), Scheme(8), True))
