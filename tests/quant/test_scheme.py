import json

import pytest
import torch

from qdexp.errors import UserError
from qdexp.quant import PerChannel, PerTensor, Scheme


@pytest.mark.parametrize("bits", [2, 3, 4, 8, 16])
def test_integers_of_a_grid(bits: int) -> None:
    for symmetric in (False, True):
        scheme = Scheme(bits, symmetric=symmetric)
        assert scheme.qmax - scheme.qmin + 1 == 2**bits
        assert scheme.qmin == (-(2**bits) // 2 if symmetric else 0)
        info = torch.iinfo(scheme.dtype)
        assert info.min <= scheme.qmin
        assert scheme.qmax <= info.max


@pytest.mark.parametrize("bits", [1, 17, 32])
def test_impossible_bits_are_named(bits: int) -> None:
    with pytest.raises(UserError, match=f"{bits} bits"):
        Scheme(bits)


@pytest.mark.parametrize("granularity", [PerTensor(), PerChannel(), PerChannel(1)])
def test_survives_json(granularity: PerTensor | PerChannel) -> None:
    scheme = Scheme(4, granularity, symmetric=True)
    assert Scheme.from_dict(json.loads(json.dumps(scheme.to_dict()))) == scheme


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_arrangement_and_expansion_agree(axis: int) -> None:
    x = torch.randn(3, 4, 5)
    granularity = PerChannel(axis)
    rows = granularity.arrange(x)
    assert len(rows) == granularity.groups(x.shape) == x.shape[axis]
    for index, row in enumerate(rows):
        assert torch.equal(row, x.select(axis, index).flatten())
    expanded = granularity.expand(rows.amax(1), x.ndim).expand_as(x)
    assert torch.equal(expanded.select(axis, 1), rows[1].max().expand_as(x.select(axis, 1)))


def test_one_group_a_tensor() -> None:
    assert PerTensor().groups((3, 4)) == 1
    assert PerTensor().arrange(torch.zeros(3, 4)).shape == (1, 12)
    assert PerChannel().arrange(torch.zeros(3)).shape == (3, 1)
