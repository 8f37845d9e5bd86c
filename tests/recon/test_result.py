from pathlib import Path

import pytest
from recon_helpers import table

from qdexp.recon import result
from qdexp.recon.result import BlockErrors

NAN, INF = float("nan"), float("inf")


@pytest.mark.parametrize(
    ("before", "learned", "kept"), [(2, 1, True), (1, 2, False), (1, 1, False), (0, 0, False), (1, NAN, False), (1, INF, False)]
)
def test_only_what_is_better_is_kept(before: float, learned: float, kept: bool) -> None:
    assert BlockErrors("block", before, learned).kept is kept


def test_the_file_is_json_and_what_gained_nothing_is_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    results = [BlockErrors("a", 0.5, 0.25), BlockErrors("b", 0.5, 0.75), BlockErrors("c", 0.5, NAN)]
    result.write(tmp_path, "weight rounding", results)
    assert table(tmp_path) == [
        {"block": "a", "before": 0.5, "learned": 0.25, "kept": True},
        {"block": "b", "before": 0.5, "learned": 0.75, "kept": False},
        {"block": "c", "before": 0.5, "learned": None, "kept": False},
    ]
    out = capsys.readouterr().out
    assert out == "  weight rounding: no gain in 2 of 3 blocks, which stay as they were: b, c\n"
    result.write(tmp_path, "weight rounding", results[:1])
    assert capsys.readouterr().out == ""
