"""What is pooled with what, and what compared with what: by content, whatever names and paths say."""

from collections.abc import Callable
from typing import Any

import pytest

from qdexp.errors import UserError
from qdexp.report.identity import Baselines, differing, grouped

Record = dict[str, Any]
Make = Callable[..., Record]


def test_seeds_of_one_configuration_are_one_row(make: Make) -> None:
    seeds = [make("ptq", seed=seed) for seed in (0, 1, 2)]
    assert grouped([*seeds, make("fp")]) == [seeds, [make("fp")]]


def test_where_a_seed_was_run_does_not_part_it_from_the_others(make: Make) -> None:
    here, there = make("ptq", path="/here/net.pt"), make("ptq", seed=1, path="/there/net.pt")
    there["config"] |= {"out": "elsewhere", "cluster": {"name": "mine"}, "memory": {"host_gb": 2.0}}
    assert grouped([here, there]) == [[here, there]]


@pytest.mark.parametrize(
    "changes", [{"weights": "other"}, {"config": {"recon": {"batch": 8}}}, {"model": "renamed"}, {"identity": "by other code"}]
)
def test_whatever_else_differs_is_a_row_of_its_own(make: Make, changes: Record) -> None:
    one, other = make("ptq"), make("ptq", seed=1, **changes)
    assert grouped([one, other]) == [[one], [other]]


def test_a_cell_that_is_given_twice_counts_once(make: Make) -> None:
    assert grouped([make("ptq"), make("ptq")]) == [[make("ptq")]]
    with pytest.raises(UserError, match=r"^net-ptq-\S+ is given twice, with different numbers: give one of the two$"):
        grouped([make("ptq"), make("ptq", {"fid": 1.0})])


def test_what_differs_is_told_by_content(make: Make) -> None:
    one = make("ptq", config={"rows": 1})
    assert differing([one, make("ptq", config={"rows": 1}, path="moved.pt", seed=1)]) == set()
    assert differing([one, make("ptq", config={"rows": 2}, weights="other")]) == {"rows", "weights"}
    assert differing([one, make("ptq")]) == {"rows"}


def test_full_precision_is_that_of_the_cells_own_weights(make: Make) -> None:
    first, second = make("fp", weights="a"), make("fp", weights="b")
    baselines = Baselines([first, second], "fp")
    assert baselines.of(make("ptq", weights="b", seed=7)) == second
    assert baselines.of(make("ptq", weights="a", quant="w8a8")) == first
    assert baselines.of(make("ptq", weights="c")) is None
    assert Baselines([], "fp").of(make("ptq")) is None


def test_a_method_is_compared_with_at_the_same_seed_and_bits(make: Make) -> None:
    wide = {"quant": "w8a8", "weight_bits": 8}
    rivals = [make("ptq", seed=0), make("ptq", seed=1), make("ptq", seed=0, **wide), make("ptq", seed=0, weights="other")]
    baselines = Baselines(rivals, "ptq")
    assert baselines.of(make("own", seed=1)) == rivals[1]
    assert baselines.of(make("own", seed=0, **wide)) == rivals[2]
    assert baselines.of(make("own", seed=0, weights="other")) == rivals[3]
    assert baselines.of(make("own", seed=2)) is None
    assert baselines.of(make("own", seed=1, **wide)) is None
    assert baselines.of(make("fp")) is None, "one of three would be chance"
    assert baselines.of(make("fp", weights="other")) == rivals[3]


def test_of_several_the_nearest_is_meant_and_a_tie_is_refused(make: Make) -> None:
    few, many = (make("ptq", config={"rows": rows}) for rows in (1, 2))
    baselines = Baselines([few, many], "ptq")
    assert baselines.of(make("own", config={"rows": 2})) == many
    both = f"{few['cell']}, {many['cell']}"
    with pytest.raises(UserError, match=rf"--baseline ptq: net-own-\S+ could be compared with any of {both}; name one of them"):
        baselines.of(make("own", config={"rows": 3}))


def test_a_named_cell_is_compared_with_all_of_its_network(make: Make) -> None:
    named = make("ptq")
    baselines = Baselines([named, make("ptq", seed=1)], named["cell"])
    assert baselines.of(make("own", seed=5, quant="w8a8", weight_bits=8)) == named
    assert baselines.of(make("own", weights="other")) is None


def test_an_unknown_baseline_is_named(make: Make) -> None:
    with pytest.raises(UserError, match="--baseline squant: no such cell or method; methods there: fp, ptq"):
        Baselines([make("ptq"), make("fp")], "squant")


def test_a_row_is_a_baseline_for_the_same_seed_and_network(make: Make) -> None:
    row = [make("own", seed=seed) for seed in (0, 1)]
    baselines = Baselines([*row, make("ptq")], row=row)
    assert baselines.of(make("ptq", seed=1, quant="w8a8", weight_bits=8)) == row[1]
    assert baselines.of(make("ptq", seed=2)) is None
    assert baselines.of(make("ptq", weights="other")) is None
    assert not Baselines([make("fp"), *row], row=row).row
