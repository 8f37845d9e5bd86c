import json

import pytest
import torch

from qdexp.errors import UserError
from qdexp.quant import PerChannel, PerTensor, Scheme, Split
from qdexp.quant.scheme import Granularity


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


@pytest.mark.parametrize(
    "granularity", [PerTensor(), PerChannel(), PerChannel(1), Split((3, 5)), Split((2, 3, 4), PerChannel(1), axis=2)]
)
def test_survives_json(granularity: Granularity) -> None:
    scheme = Scheme(4, granularity, symmetric=True)
    again = Scheme.from_dict(json.loads(json.dumps(scheme.to_dict())))
    assert again == scheme
    assert hash(again) == hash(scheme)


@pytest.mark.parametrize("axis", [0, 1, 2])
def test_arrangement_and_expansion_agree(axis: int) -> None:
    x = torch.randn(3, 4, 5)
    granularity = PerChannel(axis)
    (rows,) = granularity.pieces(x)
    assert (len(rows),) == granularity.groups(x.shape) == (x.shape[axis],)
    for index, row in enumerate(rows):
        assert torch.equal(row, x.select(axis, index).flatten())
    expanded = granularity.expand(rows.amax(1), x.shape).expand_as(x)
    assert torch.equal(expanded.select(axis, 1), rows[1].max().expand_as(x.select(axis, 1)))


def test_one_group_a_tensor() -> None:
    assert PerTensor().groups((3, 4)) == (1,)
    assert PerTensor().pieces(torch.zeros(3, 4))[0].shape == (1, 12)
    assert PerChannel().pieces(torch.zeros(3))[0].shape == (3, 1)


@pytest.mark.parametrize("within", [PerTensor(), PerChannel()])
@pytest.mark.parametrize(
    ("shape", "axis", "sizes"), [((4, 9, 2, 3), 1, (5, 1, 3)), ((4, 9), 1, (2, 7)), ((4, 2, 9), 2, (4, 5))]
)
def test_parts_have_the_groups_that_they_would_have_alone(
    within: PerTensor | PerChannel, shape: tuple[int, ...], axis: int, sizes: tuple[int, ...]
) -> None:
    x, granularity = torch.randn(shape), Split(sizes, within, axis)
    parts = x.split(sizes, axis)
    pieces = granularity.pieces(x)
    assert granularity.groups(shape) == tuple(len(piece) for piece in pieces)
    for piece, part in zip(pieces, parts, strict=True):
        assert torch.equal(piece, within.pieces(part)[0])
    values = torch.randn(sum(granularity.groups(shape)))
    own = zip(values.chunk(len(sizes)), parts, strict=True)
    alone = [within.expand(groups, part.shape).expand_as(part) for groups, part in own]
    assert torch.equal(granularity.expand(values, x.shape).expand_as(x), torch.cat(alone, axis))


def test_a_convolution_of_a_concatenation() -> None:
    assert Split((48, 32)).groups(()) == (1, 1)
    assert Split((48, 32)).expand(torch.arange(2.0), (64, 80, 28, 28)).shape == (1, 80, 1, 1)
    assert Split((48, 32), PerChannel()).groups((16, 80, 3, 3)) == (16, 16)
    assert Split((48, 32), PerChannel()).expand(torch.arange(32.0), (16, 80, 3, 3)).shape == (16, 80, 1, 1)


def test_an_axis_is_split_or_has_groups() -> None:
    with pytest.raises(ValueError, match="axis 1 is split"):
        Split((3, 5), PerChannel(1))
