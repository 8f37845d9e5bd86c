import torch

from qdexp.sampling.noise import draw, generators

SHAPE = (1, 8, 8)


def test_a_sample_is_the_same_in_any_company() -> None:
    whole = draw(generators("evaluation", 0, range(40)), SHAPE)
    assert torch.equal(draw(generators("evaluation", 0, range(32, 40)), SHAPE), whole[32:])
    assert torch.equal(draw(generators("evaluation", 0, [7, 39, 0]), SHAPE), whole[[7, 39, 0]])
    assert torch.equal(draw(generators("evaluation", 0, [11]), SHAPE)[0], whole[11])


def test_later_noise_is_the_sample_s_own_too() -> None:
    together, alone = generators("evaluation", 0, range(5)), generators("evaluation", 0, [3])
    for _ in range(3):
        rows, row = draw(together, SHAPE), draw(alone, SHAPE)
        assert torch.equal(rows[3], row[0])


def test_global_random_state_is_neither_read_nor_moved() -> None:
    torch.manual_seed(1)
    before = torch.random.get_rng_state()
    first = draw(generators("evaluation", 0, range(3)), SHAPE)
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.manual_seed(2)
    assert torch.equal(draw(generators("evaluation", 0, range(3)), SHAPE), first)


def test_streams_seeds_and_samples_never_collide() -> None:
    names = [("evaluation", 0), ("calibration", 0), ("evaluation", 1), ("evaluation", 10), ("calibration", 1)]
    first = [draw(generators(stream, seed, range(10_000)), (4,)) for stream, seed in names]
    assert len(torch.cat(first).unique(dim=0)) == len(names) * 10_000


def test_values_are_standard_normal_and_independent() -> None:
    values = draw(generators("evaluation", 0, range(2000)), (100,)).double()
    assert abs(values.mean()) < 0.01
    assert abs(values.std() - 1) < 0.01
    assert abs((values.abs() < 1).double().mean() - 0.6827) < 0.005
    assert abs((values**4).mean() - 3) < 0.06
    between = torch.corrcoef(values.T[:20]) - torch.eye(20)  # positions within a sample
    assert between.abs().max() < 0.1
    neighbours = (values[1:] * values[:-1]).mean()  # samples with neighbouring numbers
    assert abs(neighbours) < 0.01
