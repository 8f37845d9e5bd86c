"""Hadamard matrices: n x n, of +1 and -1, H H^T = n I.

A Kronecker product of two is one again. Of four they are taken *regular*, all rows with the same sum, so that what all channels
have in common does not gather in one of them (ConvRot, arXiv 2512.03673, section 3), the other powers of two come of these and
of order two, and for what is left of a width there are Paley's: of order q + 1 for a prime q = 3 mod 4, and 2 (q + 1) for a
prime q = 1 mod 4 (Paley 1933, J. Math. Phys. 12).
"""

from functools import cache
from math import isqrt

import torch
from torch import Tensor

TWO = torch.tensor([[1, 1], [1, -1]])
FOUR = torch.ones(4, 4, dtype=torch.int64) - 2 * torch.eye(4, dtype=torch.int64).flip(1)
LARGEST = 7
"""log2 of the largest order that is multiplied as one matrix, unless it is one of Paley's."""


def has_order(order: int) -> bool:
    """Whether there is one of this order here."""
    return order == 1 or _power_and_rest(order) is not None


@cache
def matrices(order: int) -> tuple[Tensor, ...]:
    """Hadamard matrices, int64, whose Kronecker product is one of this order; none of order 1. Raises ValueError where there is
    none."""
    if order == 1:
        return ()
    found = _power_and_rest(order)
    if found is None:
        raise ValueError(f"no Hadamard matrix of order {order} is known here")
    power, rest = found
    if order <= 2**LARGEST:
        return (torch.kron(_of_power(power), _paley(rest)) if rest > 1 else _of_power(power),)
    count = -(-power // LARGEST)
    powers = [power // count + (number < power % count) for number in range(count)]
    return tuple(map(_of_power, powers)) + ((_paley(rest),) if rest > 1 else ())


def additions(order: int) -> int:
    """The additions per value of a fast transform: log2 of the power of two, and the order of the rest."""
    if order == 1:
        return 0
    found = _power_and_rest(order)
    assert found is not None
    power, rest = found
    return power + (rest if rest > 1 else 0)


def _power_and_rest(order: int) -> tuple[int, int] | None:
    """k and m, order = 2^k m, where m is 1 or the least order that Paley's constructions give."""
    twos = (order & -order).bit_length() - 1
    odd = order >> twos
    if odd == 1:
        return (twos, 1) if twos else None
    return next(((twos - own, odd << own) for own in range(2, twos + 1) if _prime_of(odd << own) is not None), None)


def _prime_of(order: int) -> int | None:
    """The prime that Paley's constructions need for it."""
    if _is_prime(order - 1) and order % 4 == 0:
        return order - 1
    return order // 2 - 1 if order % 4 == 0 and _is_prime(order // 2 - 1) and order // 2 % 4 == 2 else None


def _is_prime(number: int) -> bool:
    return number > 1 and all(number % divisor for divisor in range(2, isqrt(number) + 1))


def _of_power(power: int) -> Tensor:
    """A Hadamard matrix of order 2^power."""
    found = torch.ones(1, 1, dtype=torch.int64)
    for factor in [FOUR] * (power // 2) + [TWO] * (power % 2):
        found = torch.kron(found, factor)
    return found


def _paley(order: int) -> Tensor:
    q = _prime_of(order)
    assert q is not None
    numbers = torch.arange(q)
    squares = torch.zeros(q, dtype=torch.bool)
    squares[numbers[1:] ** 2 % q] = True
    differences = (numbers[:, None] - numbers) % q
    bordered = torch.zeros(q + 1, q + 1, dtype=torch.int64)
    bordered[1:, 1:] = torch.where(differences == 0, 0, 2 * squares[differences] - 1)  # Jacobsthal's matrix
    bordered[0, 1:] = 1
    bordered[1:, 0] = 1 if q % 4 == 1 else -1
    identity = torch.eye(q + 1, dtype=torch.int64)
    if q % 4 == 3:
        return bordered + identity
    return torch.kron(bordered, TWO) + torch.kron(identity, TWO.flip(0) * torch.tensor([[1], [-1]]))
