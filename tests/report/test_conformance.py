"""A paper's numbers and settings beside a study's."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from qdexp.errors import UserError
from qdexp.report.comparison import Line
from qdexp.report.conformance import Paper, to_markdown
from qdexp.statistics.estimate import Interval

CELL = {
    "where": {"method": "ptq", "quant": "w4a8"},
    "numbers": {"fid": 12.0, "isc": 7.5},
    "settings": {"calib.rows": {"code": 256}},
}
PAPER: dict[str, Any] = {
    "title": "A paper",
    "source": "arXiv 0000.00000",
    "settings": {
        "calib.rows": {"paper": 1},
        "calib.timesteps": {"paper": 20, "code": 20},
        "protocol.n": {"paper": 50000, "code": 1024},
        "act.online": {"paper": True},
    },
    "cells": [CELL],
}


@pytest.fixture
def line(make: Any) -> Line:
    record = make("ptq", config={"calib": {"rows": 32, "timesteps": 20}, "protocol": {"n": 1024}})
    numbers = {"fid": Interval(12.3, 11.5, 13.1), "isc": Interval(7.1, math.nan, math.nan)}
    return Line("ptq", [record], numbers, {})


def write(folder: Path, **changes: Any) -> Path:
    path = folder / "paper.json"
    path.write_text(json.dumps(PAPER | changes))
    return path


def test_numbers_stand_beside_ours_and_every_deviation_is_named(line: Line, tmp_path: Path) -> None:
    rows = [(row.what, row.theirs, row.ours, row.remark) for row in Paper.read(write(tmp_path)).rows(line)]
    assert rows == [
        ("FID", "12.00 (reported)", "12.30 ± 0.80", "inside our interval, which is over the images alone"),
        ("IS", "7.50 (reported)", "7.10", "no interval"),
        ("calib.rows", "256 (code)", "32", "deviates from the code"),
        ("protocol.n", "50000 (paper), 1024 (code)", "1024", "deviates from the paper"),
        ("act.online", "True (paper)", "no such option", "deviates from the paper"),
    ]


def test_a_number_outside_is_said_to_be(line: Line, tmp_path: Path) -> None:
    paper = Paper.read(write(tmp_path, cells=[{**CELL, "numbers": {"fid": 4.9, "kid": 3.0}}]))
    outside = "outside our interval, which is over the images alone"
    assert [row.remark for row in paper.rows(line)[:2]] == [outside, "not measured"]


def test_a_cell_that_the_paper_has_not(line: Line, tmp_path: Path) -> None:
    paper = Paper.read(write(tmp_path, cells=[{**CELL, "where": {"method": "squant"}}]))
    assert paper.rows(line) == []
    with pytest.raises(UserError, match="A paper reports none of these cells"):
        to_markdown(paper, [line])


def test_the_list_as_markdown(line: Line, tmp_path: Path) -> None:
    settings = PAPER["settings"] | {"protocol.name": {"paper": "a|b"}}
    text = to_markdown(Paper.read(write(tmp_path, settings=settings, deviations=["other noise"])), [line])
    assert text.endswith("Of every cell:\n\n- other noise\n")
    assert text.startswith("# A paper (arXiv 0000.00000) and this study\n\n## ptq\n\n| what ")
    row = next(line for line in text.splitlines() if line.startswith("| FID"))
    remark = "inside our interval, which is over the images alone"
    assert [part.strip() for part in row.split("|")] == ["", "FID", "12.00 (reported)", "12.30 ± 0.80", remark, ""]
    assert "a\\|b (paper)" in text


@pytest.mark.parametrize(
    "changes",
    [
        {"cells": [{"where": {}}]},
        {"cells": 3},
        {"cells": [CELL | {"where": "ptq"}]},
        {"cells": [CELL | {"numbers": ["fid"]}]},
        {"cells": [CELL | {"numbers": {"fid": "4.9"}}]},
        {"cells": [CELL | {"numbers": {"fud": 4.9}}]},
        {"settings": {"a": {"rumour": 1}}},
        {"settings": {"a": 1}},
    ],
)
def test_a_file_of_another_form_is_refused(tmp_path: Path, changes: dict[str, Any]) -> None:
    with pytest.raises(UserError, match="--reported"):
        Paper.read(write(tmp_path, **changes))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"nowhere\.json: FileNotFoundError"):
        Paper.read(tmp_path / "nowhere.json")
