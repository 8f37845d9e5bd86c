from collections import Counter
from collections.abc import Sequence

import pytest
import torch

from qdexp.calib import strategies
from qdexp.calib.selection import choose_positions, choose_rows
from qdexp.errors import UserError

SPREAD = [0, 2, 5, 9]
REPEATED = [1, 1, 1, 4, 7, 7]


@pytest.mark.parametrize("positions", [SPREAD, REPEATED, [3]])
def test_pairs_are_distinct_and_every_prefix_is_stratified(positions: list[int]) -> None:
    pairs = choose_rows(positions, rows=8, samples=24, seed=0)
    assert len(pairs) == len(set(pairs)) == 8 * len(positions)
    assert all(0 <= sample < 24 for _, sample in pairs)
    for k in range(1, 9):
        prefix = Counter(p for p, _ in pairs[: k * len(positions)])
        assert prefix == {p: k * count for p, count in Counter(positions).items()}


def test_all_samples_can_be_asked_for() -> None:
    pairs = choose_rows([2, 2, 6], rows=5, samples=10, seed=0)
    assert sorted(sample for p, sample in pairs if p == 2) == list(range(10))


def test_positions_draw_their_samples_independently() -> None:
    pairs = choose_rows(SPREAD, rows=8, samples=64, seed=0)
    chosen = {p: [sample for q, sample in pairs if q == p] for p in SPREAD}
    assert len({tuple(samples) for samples in chosen.values()}) == len(SPREAD)


def test_the_seed_moves_the_samples() -> None:
    assert choose_rows(SPREAD, 8, 24, seed=3) == choose_rows(SPREAD, 8, 24, seed=3)
    assert choose_rows(SPREAD, 8, 24, seed=3) != choose_rows(SPREAD, 8, 24, seed=4)


def test_samples_are_drawn_evenly() -> None:
    drawn = Counter(sample for seed in range(1000) for _, sample in choose_rows(SPREAD, 2, 8, seed))
    assert all(count == pytest.approx(1000, rel=0.15) for count in drawn.values())
    assert len(drawn) == 8


@pytest.mark.parametrize("positions", [SPREAD, REPEATED])
def test_too_few_samples(positions: list[int]) -> None:
    most = 5 * max(Counter(positions).values())
    assert len(choose_rows(positions, 5, most, seed=0)) == 5 * len(positions)
    with pytest.raises(UserError, match=rf"^calib\.rows=5: asks for {most} .* holds {most - 1}; .*trajectory\.samples$"):
        choose_rows(positions, 5, most - 1, seed=0)


def test_positions_come_sorted_and_seeded() -> None:
    positions = choose_positions(strategies.random, 50, 20, seed=0)
    assert positions == sorted(positions)
    assert positions == choose_positions(strategies.random, 50, 20, seed=0)
    assert positions != choose_positions(strategies.random, 50, 20, seed=1)
    assert choose_positions(strategies.last, 20, 20, seed=0) == list(range(20))


def test_a_strategy_of_ones_own() -> None:
    def ends(steps: int, timesteps: int, generator: torch.Generator) -> Sequence[int]:
        return (steps - 1, 0)

    assert choose_positions(ends, 10, 2, seed=0) == [0, 9]
    with pytest.raises(UserError, match=r"^calib\.strategy: \[0, 9\] are not 3 positions between 0 and 9$"):
        choose_positions(ends, 10, 3, seed=0)
    for wrong in (-1, 10):
        with pytest.raises(UserError, match=r"^calib\.strategy: .* are not 1 positions between 0 and 9$"):
            choose_positions(lambda *_, wrong=wrong: [wrong], 10, 1, seed=0)


def test_more_timesteps_than_the_sampler_has() -> None:
    with pytest.raises(UserError, match=r"^calib\.timesteps=11: the sampler has 10 steps; .*protocol\.steps$"):
        choose_positions(strategies.uniform, 10, 11, seed=0)
