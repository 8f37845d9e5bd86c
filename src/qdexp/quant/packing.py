"""Integers of b bits, packed without gaps.

Value i occupies bits [i b, (i+1) b) of a little-endian bit stream. The smallest run of values that ends on a byte is read as
one 64-bit word, so the loops below run over a word's values and bytes, never over the tensor.
"""

import torch
from torch import Tensor


def packed_bytes(count: int, bits: int) -> int:
    """Bytes that `count` values take."""
    return (count * bits + 7) // 8


def pack(values: Tensor, bits: int) -> Tensor:
    """Integers in 0 .. 2^bits - 1, any shape, flattened in row-major order -> uint8 [packed_bytes]."""
    per_word, word_bytes = _word(bits)
    flat = values.reshape(-1).long()
    padded = torch.nn.functional.pad(flat, (0, -len(flat) % per_word)).view(-1, per_word)
    words = torch.zeros_like(padded[:, 0])
    for i in range(per_word):
        words |= padded[:, i] << (bits * i)
    stream = torch.stack([(words >> (8 * j)) & 255 for j in range(word_bytes)], dim=1).to(torch.uint8)
    return stream.view(-1)[: packed_bytes(len(flat), bits)].clone()


def unpack(stream: Tensor, bits: int, count: int) -> Tensor:
    """The first `count` values of a packed stream, uint8 [packed_bytes] -> int32 [count]."""
    per_word, word_bytes = _word(bits)
    padded = torch.nn.functional.pad(stream.long(), (0, -len(stream) % word_bytes)).view(-1, word_bytes)
    words = torch.zeros_like(padded[:, 0])
    for j in range(word_bytes):
        words |= padded[:, j] << (8 * j)
    values = torch.stack([(words >> (bits * i)) & (2**bits - 1) for i in range(per_word)], dim=1)
    return values.view(-1)[:count].int()


def _word(bits: int) -> tuple[int, int]:
    """(values, bytes) of one word."""
    if not (1 <= bits <= 8 or bits == 16):
        raise ValueError(f"cannot pack {bits} bits: 1 to 8, or 16")
    per_word = 8 if bits <= 8 else 4
    return per_word, per_word * bits // 8
