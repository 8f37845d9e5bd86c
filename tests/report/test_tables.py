"""What a table of records says: digits, columns, what stands below it."""

import io
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qdexp.errors import UserError
from qdexp.report.comparison import Comparison, compare
from qdexp.report.evidence import Evidence
from qdexp.report.tables import LONGEST, to_csv, to_latex, to_markdown, to_terminal
from qdexp.statistics.estimate import Interval
from qdexp.sweep.results import WIDTH

Record = dict[str, Any]
Make = Callable[..., Record]


def compared(records: list[Record], baseline: str | None = None) -> Comparison:
    """Of records whose store is elsewhere."""
    return compare(records, Evidence(Path("nowhere")), baseline)


def markdown(*records: Record) -> str:
    return to_markdown(compared(list(records)), "brief")


def shown(records: list[Record], width: int) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(to_terminal(compared(records), width, "brief"))
    return out.getvalue()


def cells(*records: Record) -> list[dict[str, str]]:
    """The rows of the Markdown table, by header."""
    lines = markdown(*records).split("\n\n")[0].splitlines()
    header, _, *rows = [[text.strip() for text in line.strip("| ").split(" | ")] for line in lines]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_digits(make: Make) -> None:
    assert cells(make("ptq")) == [
        {
            "method": "ptq",
            "bits": "W4A8",
            "FID": "12.35",
            "KID x1000": "12.34",
            "noise error x1000": "0.619",
            "MSE to FP x1000": "12.3",
            "stored MB": "0.71",
            "time": "12.0 s",
        }
    ]


@pytest.mark.parametrize(
    ("metrics", "seconds", "column", "text"),
    [
        ({"fid": 464.687}, 0, "FID", "464.69"),
        ({"fid": None}, 0, "FID", "-"),
        ({"kid": -0.0004}, 0, "KID x1000", "-0.40"),
        ({"distance": 0.25}, 0, "MSE to FP x1000", "250"),
        ({"distance": 1.2345e-6}, 0, "MSE to FP x1000", "0.00123"),
        ({"distance": 0.0}, 0, "MSE to FP x1000", "0"),
        ({"noise_error": 0.02}, 0, "noise error x1000", "20.0"),
        ({}, 59.94, "time", "59.9 s"),
        ({}, 192, "time", "3.2 min"),
        ({}, 5400, "time", "1.5 h"),
    ],
)
def test_special_numbers(make: Make, metrics: Record, seconds: float, column: str, text: str) -> None:
    other = make("timestep_aware")
    assert cells(make("ptq", metrics, costs={"total": {"seconds": seconds}}), other)[0][column] == text


def test_missing_numbers_are_dashes_and_empty_columns_are_left_out(make: Make) -> None:
    fp = make("fp", {"noise_error": None, "kid": None})
    del fp["metrics"]["size_stored_mb"]
    first, second = cells(make("ptq", {"kid": None}), fp)
    assert (first["method"], first["bits"], first["stored MB"]) == ("fp", "W32A32", "-")
    assert second["stored MB"] == "0.71"
    assert "KID x1000" not in first


def test_the_protocol_is_said(make: Make) -> None:
    line = "net, protocol quick: n = 1,024, 10 DPMSolverMultistep steps, features of fashion-cnn 01234567, floor FID 1.23"
    assert line + ".\n" in markdown(make("ptq"))
    assert line in " ".join(shown([make("ptq")], 110).split())
    other = make("ptq", protocol={"floor": {"fid": 0.5, "n": 2048}})
    assert "floor FID 0.50 at n = 2,048.\n" in markdown(other)
    del other["protocol"]["floor"]
    assert "01234567.\n" in markdown(other)
    assert "\nprotocol quick" in markdown(make("ptq"), make("ptq", model="other"))  # no one model


@pytest.mark.parametrize("changes", [{"name": "fid5k", "n": 5000}, {"extractor": "other"}, {"reference_digest": "00"}, {}])
def test_different_protocols_are_refused_by_name(make: Make, changes: Record) -> None:
    other = make("timestep_aware", protocol={"hash": "0ddba11123", **changes})
    with pytest.raises(UserError) as caught:
        compared([make("ptq"), other])
    message = str(caught.value)
    for part in ("quick: n = 1,024", changes.get("name", "quick"), "feedbeef", "0ddba111"):
        assert part in message
    assert "\n" not in message


def test_a_result_whose_parts_come_from_several_kinds_of_machines_is_named(make: Make) -> None:
    record, other = make("fp"), make("ptq")
    record["stages"] = {"samples": {"key": "0123", "machines": ["A100", "H100"]}}
    other["stages"] = {"samples": {"key": "89ab", "machines": ["A100"]}, "rounding": {"key": "89"}}
    told = markdown(record, other)
    assert "samples-0123: parts of it were made on A100 and on H100; " in told
    assert "89ab" not in told


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(UserError, match="no records"):
        compared([])


def test_failed_cells_are_one_line_each(make: Make, failed: Record) -> None:
    line = f"failed: {failed['cell']} in act: ValueError: no [rows] left | at all"
    assert f"\n\n- {line}\n" in markdown(make("ptq"), failed)
    assert line in [text.strip() for text in shown([make("ptq"), failed], 110).splitlines()]
    assert [row["method"] for row in cells(make("ptq"), failed)] == ["ptq"]
    assert "Traceback" not in shown([failed], 110) + markdown(failed)
    assert line in markdown(failed) and to_csv(compared([failed])).count("\n") == 1
    failed["error"]["message"] = "x" * 500
    assert max(len(text.strip()) for text in shown([failed, make("ptq")], 200).splitlines() if "failed: " in text) <= LONGEST


def test_the_terminal_table_of_a_sweep_fits_and_is_right_aligned(make: Make) -> None:
    small = make("ptq", {"fid": 5.0, "kid": 0.0001}, costs={"total": {"seconds": 3540}})

    def between(value: float) -> Interval:
        return Interval(value, 0.9 * value, 1.1 * value)

    comparison = compared([make("fp"), small, make("reconstruction", {"fid": 464.69, "kid": 0.3214})])
    lines = [
        replace(
            line,
            numbers=line.numbers | {key: between(line.numbers[key].value) for key in ("fid", "kid", "distance")},
            differences={"fid": Interval(7.71, 6.85, 8.57)} if line.name != "fp" else {},
        )
        for line in comparison.lines
    ]
    out = io.StringIO()
    Console(file=out, width=WIDTH).print(to_terminal(replace(comparison, lines=lines), WIDTH, "brief"))
    assert "no room" not in out.getvalue()
    rows = [line for line in out.getvalue().splitlines() if " W" in line]
    for row, line, fid in zip(rows, lines, ("12.35 ± 1.23", "5.00 ± 0.50", "464.69 ± 46.47"), strict=True):
        assert row.split()[0] == line.name and fid in row
    assert len({row.index(fid) + 5 for row, fid in zip(rows, (" ± 1.23 ", " ± 0.50 ", "± 46.47 "), strict=True)}) == 1


def test_a_narrow_terminal_shows_whole_columns_and_says_which_it_leaves_out(make: Make) -> None:
    records = [make("fp"), make("ptq", weights="other")]
    text = shown(records, 44)
    assert "no room here for stored MB, time: table.md has all" in " ".join(text.split())
    assert "12.34" in text and "0.619" in text and "…" not in text
    assert max(map(len, text.splitlines())) <= 44


def test_markdown_escapes_and_aligns(make: Make) -> None:
    text = markdown(make("a|b"))
    header, rule, row = text.splitlines()[:3]
    assert row.startswith("| a\\|b ")
    assert rule.count("---:") == 6
    assert header.count("|") == rule.count("|") == 9
    assert text.endswith("floor FID 1.23.\n")


def test_latex_sees_no_command_in_a_name(make: Make) -> None:
    text = to_latex(compared([make(r"a_b%^~\c")]))
    assert r"a\_b\%\textasciicircum \textasciitilde \textbackslash c & W4A8 & 12.35 & " in text
    assert r"\begin{tabular}{llrrrrrr}" in text


def test_report_imports_no_machinery() -> None:
    code = "import sys, qdexp.report.tables, qdexp.report.grid; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in out if name.startswith("qdexp.")}
    read = (
        "qdexp.errors",
        "qdexp.entries",
        "qdexp.files",
        "qdexp.layout",
        "qdexp.numbers",
        "qdexp.record",
        "qdexp.report",
        "qdexp.shape",
        "qdexp.statistics",
    )
    assert all(name.startswith(read) for name in ours)
    assert not {"torch", "wandb", "hydra", "matplotlib"} & set(out)


HOSTILE = "=HYPERLINK(1)|<b>x</b>\\|`c`*e*[l](http://x)\n\\input{y}\r\x1b[31m % & $"


def test_names_and_messages_are_texts_in_every_table(make: Make) -> None:
    failed = make("ptq", seed=1, status="failed", error={"stage": HOSTILE, "type": HOSTILE, "message": HOSTILE})
    comparison = compared([make(HOSTILE), failed | {"cell": HOSTILE, "axes": failed["axes"] | {"model": HOSTILE}}])
    for text in (to_markdown(comparison), to_latex(comparison), to_csv(comparison)):
        assert not re.search(r"[\x00-\x09\x0b-\x1f]", text)
        assert not re.search(r"^\\input", text, re.MULTILINE)
    assert not re.search(r"^=|,=|,\"=", to_csv(comparison), re.MULTILINE)
    said = to_markdown(comparison)
    assert "<b>" not in said and not re.search(r"(?<!\\)\]\(http", said) and "\\*e\\*" in said
    widths = {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in said.splitlines() if line.startswith("|")}
    assert len(widths) == 1  # no cell ends where a name says so
    assert all(line.startswith("%") for line in to_latex(comparison).partition("\\begin")[0].splitlines())
    with io.StringIO() as out:
        Console(file=out, width=200).print(to_terminal(comparison, 200))
        assert "\x1b" not in out.getvalue() and "HYPERLINK" in out.getvalue()
