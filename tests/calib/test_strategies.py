import inspect
from collections.abc import Callable
from itertools import pairwise

import pytest
import torch
from omegaconf import OmegaConf

from qdexp.calib import strategies
from qdexp.paths import conf_folder

STRATEGIES = dict(inspect.getmembers(strategies, inspect.isfunction))
WITHOUT_CHANCE = ("uniform", "last", "first", "middle")
CONFIGS = sorted((conf_folder() / "calib").glob("*.yaml"))


def choose(name: str, steps: int, timesteps: int, seed: int = 0) -> list[int]:
    found: Callable[[int, int, torch.Generator], list[int]] = STRATEGIES[name]
    return found(steps, timesteps, torch.Generator().manual_seed(seed))


@pytest.mark.parametrize("name", STRATEGIES)
def test_the_number_of_positions_is_exact(name: str) -> None:
    for steps in range(1, 61):
        for timesteps in range(1, steps + 1):
            positions = choose(name, steps, timesteps)
            assert len(positions) == timesteps
            assert all(type(p) is int and 0 <= p < steps for p in positions)
            if name in WITHOUT_CHANCE:
                assert len(set(positions)) == timesteps


def test_uniform_is_evenly_spaced_and_centred() -> None:
    for steps in range(1, 61):
        for timesteps in range(1, steps + 1):
            positions = choose("uniform", steps, timesteps)
            gaps = [after - before for before, after in pairwise(positions)]
            assert not gaps or max(gaps) - min(gaps) <= 1
            before, after = positions[0], steps - 1 - positions[-1]
            assert abs(before - after) <= 1


def test_a_stepped_range_would_give_too_many() -> None:
    """The public code takes range(0, steps, steps // timesteps)."""
    for steps, timesteps in ((10, 4), (50, 15), (200, 19)):
        assert len(range(0, steps, steps // timesteps)) > timesteps
        assert len(choose("uniform", steps, timesteps)) == timesteps


def test_which_positions() -> None:
    assert choose("last", 10, 1) == [9]
    assert choose("last", 10, 3) == [7, 8, 9]
    assert choose("first", 10, 1) == [0]
    assert choose("first", 10, 3) == [0, 1, 2]
    assert choose("middle", 9, 3) == [3, 4, 5]
    assert choose("middle", 10, 1) == [4]
    assert choose("uniform", 10, 5) == [1, 3, 5, 7, 9]
    assert choose("uniform", 9, 3) == [1, 4, 7]
    for name in STRATEGIES:
        assert choose(name, 1, 1) == [0]
    for name in WITHOUT_CHANCE:
        assert choose(name, 7, 7) == list(range(7))


@pytest.mark.parametrize("name", ["random", "normal"])
def test_a_seed_gives_the_same_positions_again(name: str) -> None:
    assert choose(name, 50, 40, seed=1) == choose(name, 50, 40, seed=1)
    assert choose(name, 50, 40, seed=1) != choose(name, 50, 40, seed=2)


@pytest.mark.parametrize("name", WITHOUT_CHANCE)
def test_the_others_know_no_chance(name: str) -> None:
    assert choose(name, 50, 7, seed=1) == choose(name, 50, 7, seed=2)


def frequencies(positions: list[int], steps: int) -> torch.Tensor:
    return torch.bincount(torch.tensor(positions), minlength=steps) / len(positions)


def test_random_is_flat() -> None:
    draws = [p for seed in range(2000) for p in choose("random", 10, 10, seed)]
    assert (frequencies(draws, 10) - 0.1).abs().max() < 0.01


def test_normal_is_a_bell_cut_off_at_the_ends() -> None:
    """Against rejection: t ~ N(0.4 T, T / 2) counted from the image, drawn again while it lies outside of the sampler."""
    steps = 50
    draws = [p for seed in range(1000) for p in choose("normal", steps, steps, seed)]
    generator = torch.Generator().manual_seed(0)
    t = (torch.randn(200_000, generator=generator, dtype=torch.float64) * 0.5 + 0.4) * steps
    t = t[(t >= 0) & (t < steps)]
    slow = frequencies((steps - 1 - t.long()).tolist(), steps)
    assert (frequencies(draws, steps) - slow).abs().max() < 0.003
    assert slow.argmax().item() / steps == pytest.approx(0.6, abs=0.15)
    tenths = frequencies(draws, steps).reshape(10, 5).sum(1)
    assert 5 <= tenths.argmax() <= 6
    assert tenths[0] < 0.75 * tenths[5]
    assert sum(draws) / len(draws) / steps > 0.5


def test_a_narrow_normal_lies_at_its_mean() -> None:
    generator = torch.Generator().manual_seed(0)
    for mean in (0.25, 0.6):
        positions = strategies.normal(100, 100, generator, mean=mean, deviation=0.05)
        assert sum(positions) / 100 == pytest.approx(100 * mean, abs=2)


@pytest.mark.parametrize("path", CONFIGS, ids=lambda path: path.stem)
def test_a_config_names_its_strategy(path: object) -> None:
    calib = OmegaConf.load(str(path))
    assert calib.name in str(path)
    assert calib.strategy._target_.rpartition(".")[2] in STRATEGIES


def test_all_configs_give_the_same_number_of_rows() -> None:
    calibs = [OmegaConf.load(path) for path in CONFIGS]
    assert len(calibs) >= 6
    samples = OmegaConf.load(conf_folder() / "config.yaml").trajectory.samples
    assert {calib.timesteps * calib.rows for calib in calibs} == {samples}
