"""The order of rows and their names: no two alike, and what a name tells is what differs."""

from collections.abc import Callable
from typing import Any

from qdexp.report.rows import in_order, names, told_apart

Record = dict[str, Any]
Make = Callable[..., Record]


def test_rows_are_ladders_by_bit_width(make: Make) -> None:
    eight = {"quant": "w8a8", "weight_bits": 8}
    records = [make("timestep_aware"), make("own"), make("ptq", **eight), make("ptq"), make("fp")]
    ordered = in_order(records)
    assert names(ordered) == ["fp", "ptq W8A8", "ptq W4A8", "timestep_aware W4A8", "own W4A8"]


def test_an_option_that_tells_rows_apart_is_named_where_it_does(make: Make) -> None:
    few, many = (make("ptq", config={"calib": {"timesteps": count, "rows": 3}, "out": str(count)}) for count in (2, 10))
    assert names([few, many, make("fp")]) == ["ptq timesteps=2", "ptq timesteps=10", "fp"]
    assert in_order([many, few]) == [few, many], "numbers by their value"


def test_an_option_is_called_by_as_many_words_as_tell_it(make: Make) -> None:
    one, other = (make("ptq", config={"a": {"rate": rate}, "b": {"rate": 1}}) for rate in (1, 2))
    assert names([one, other]) == ["ptq a.rate=1", "ptq a.rate=2"]


def test_seeds_are_told_of_records_and_not_of_their_row(make: Make) -> None:
    records = [make("ptq", seed=seed) for seed in (0, 1)]
    assert names(records) == ["ptq seed=0", "ptq seed=1"]
    assert names([records[1], make("timestep_aware")]) == ["ptq", "timestep_aware"]


def test_two_weights_are_called_by_their_files(make: Make) -> None:
    records = [make(method, weights=held, path=f"w/{held}.pt") for held in ("plain", "tuned") for method in ("fp", "ptq")]
    assert names(records) == ["fp weights=plain.pt", "ptq weights=plain.pt", "fp weights=tuned.pt", "ptq weights=tuned.pt"]
    shuffled = [records[place] for place in (3, 0, 2, 1)]
    assert names(in_order(shuffled)) == [names(records)[place] for place in (2, 3, 0, 1)], "network by network"


def test_weights_exchanged_in_place_are_called_by_their_digests(make: Make) -> None:
    before, after = make("ptq", weights="a"), make("ptq", weights="b", seed=1)
    assert names([before, after]) == [f"ptq weights={one['files']['weights']['sha256'][:8]}" for one in (before, after)]


def test_content_is_told_beside_an_option_that_differs_too(make: Make) -> None:
    before, after = make("ptq", weights="a", config={"rows": 1}), make("ptq", weights="b", config={"rows": 2})
    assert all("weights=" in name for name in names([before, after]))


def test_a_path_tells_nothing_where_its_content_is_the_same(make: Make) -> None:
    here, there = (make("ptq", path=path, config={"rows": rows}) for path, rows in (("a/w.pt", 1), ("b/w.pt", 2)))
    assert names([here, there]) == ["ptq rows=1", "ptq rows=2"]


def test_where_the_config_tells_nothing_the_code_and_the_machine_do(make: Make) -> None:
    one, other = (make("ptq", provenance={"git_commit": commit, "host": commit}) for commit in ("aaa", "bbb"))
    other |= {"identity": "other", "cell": "net-ptq-w4a8-0123456789"}
    assert names([one, other]) == ["ptq git_commit=aaa", "ptq git_commit=bbb"]
    other["provenance"] = one["provenance"]
    assert names([one, other])[1] == "ptq key=01234567"


def test_records_of_the_first_format_are_told_by_path_and_seed(make: Make) -> None:
    records = [make("ptq", path=path, seed=seed) for path, seed in (("a.pt", 0), ("a.pt", 1), ("b.pt", 1))]
    for number, record in enumerate(records):
        record |= {"files": {}, "identity": str(number), "cell": str(number)}
    assert names(records) == ["ptq weights=a.pt seed=0", "ptq weights=a.pt seed=1", "ptq weights=b.pt"]


def test_cells_that_have_no_record_yet_are_told_apart_likewise(make: Make) -> None:
    told = ("cell", "axes", "config", "files")
    records = [make("ptq", seed=seed, config={"rows": rows}) for rows in (1, 2) for seed in (0, 1)] + [make("fp")]
    coming = [{"cell": str(number), **{name: one[name] for name in told[1:]}} for number, one in enumerate(records)]
    labels = ["ptq w4a8"] * 4 + ["fp"]
    expected = [f"ptq w4a8 rows={rows} seed={seed}" for rows in (1, 2) for seed in (0, 1)] + ["fp"]
    assert told_apart(labels, coming) == expected
