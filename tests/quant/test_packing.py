import pytest
import torch

from qdexp.quant.packing import pack, packed_bytes, unpack


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 6, 7, 8, 16])
@pytest.mark.parametrize("count", [0, 1, 7, 8, 9, 1001])
def test_round_trip_and_layout(bits: int, count: int) -> None:
    values = torch.randint(0, 2**bits, (count,), generator=torch.Generator().manual_seed(bits))
    stream = pack(values, bits)
    assert stream.dtype == torch.uint8
    assert len(stream) == packed_bytes(count, bits) == -(-count * bits // 8)
    assert torch.equal(unpack(stream, bits, count), values.int())
    number = sum(value << (bits * i) for i, value in enumerate(values.tolist()))  # the stream as one integer
    assert int.from_bytes(bytes(stream.tolist()), "little") == number


@pytest.mark.parametrize("bits", [2, 4, 8, 16])
def test_extremes_and_shapes(bits: int) -> None:
    values = torch.full((3, 5, 7), 2**bits - 1)
    assert torch.equal(unpack(pack(values, bits), bits, 105), values.flatten().int())
    values = torch.arange(2**bits).view(2, 2, -1).transpose(0, 2)
    assert torch.equal(unpack(pack(values, bits), bits, 2**bits).view(values.shape), values.int())


def test_impossible_bits() -> None:
    with pytest.raises(ValueError, match="12 bits"):
        pack(torch.zeros(3), 12)
