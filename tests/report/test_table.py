import io
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from rich.console import Console

from qdexp.errors import UserError
from qdexp.report.table import LINE, ladder_table, row_names, to_markdown

Record = dict[str, Any]
Make = Callable[..., Record]


def shown(records: list[Record], width: int = 110) -> str:
    out = io.StringIO()
    Console(file=out, width=width).print(ladder_table(records))
    return out.getvalue()


def cells(records: list[Record]) -> list[dict[str, str]]:
    """The rows of the Markdown table, by header."""
    header, _, *rows = [
        [text.strip() for text in line.strip("| ").split(" | ")] for line in to_markdown(records).split("\n\n")[0].splitlines()
    ]
    return [dict(zip(header, row, strict=True)) for row in rows]


def test_digits(make: Make) -> None:
    assert cells([make("ptq")]) == [
        {
            "method": "ptq",
            "bits": "W4A8",
            "calib": "last",
            "FID": "12.35",
            "IS": "7.10",
            "KID x1000": "12.34 ± 0.56",
            "noise error x1000": "0.619",
            "MSE to FP x1000": "12.3",
            "nominal MB": "0.64",
            "stored MB": "0.71",
            "time": "12.0 s",
        }
    ]


@pytest.mark.parametrize(
    ("metrics", "seconds", "column", "text"),
    [
        ({"fid": 464.687}, 0, "FID", "464.69"),
        ({"fid": float("nan")}, 0, "FID", "nan"),
        ({"kid": -0.0004, "kid_std": None}, 0, "KID x1000", "-0.40"),
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
    assert cells([make("ptq", metrics, costs={"total": {"seconds": seconds}})])[0][column] == text


def test_full_precision_has_no_calibration_and_missing_numbers_are_dashes(make: Make) -> None:
    fp = make("fp", quantizer="none")
    del fp["metrics"]["size_stored_mb"]
    first, second = cells([make("ptq"), fp])
    assert (first["method"], first["bits"], first["calib"], first["stored MB"]) == ("fp", "W32A32", "-", "-")
    assert second["stored MB"] == "0.71"


def test_columns_that_no_cell_fills_are_left_out(make: Make) -> None:
    records = [make(method, {"noise_error": None, "kid": None}) for method in ("ptq", "timestep_aware")]
    assert not {"noise error x1000", "KID x1000"} & cells(records)[0].keys()


def test_what_is_quantized_is_shown_where_it_is_not_all(make: Make) -> None:
    whole, partly = make("ptq", {"coverage_macs": 1.0}), make("timestep_aware", {"coverage_macs": 0.4321})
    assert "quantized MACs" not in cells([whole])[0]
    assert [row["quantized MACs"] for row in cells([whole, partly, make("fp", quantizer="none")])] == ["-", "100.0%", "43.2%"]


def test_rows_are_ladders_by_bit_width(make: Make, failed: Record) -> None:
    eight = {"quant": "w8a8", "weight_bits": 8}
    records = [make("timestep_aware"), failed, make("own"), make("ptq", **eight), make("ptq"), make("fp", quantizer="none")]
    rows = [(row["method"], row["bits"]) for row in cells(records)]
    low = [(method, "W4A8") for method in ("ptq", "timestep_aware", "reconstruction", "own")]
    assert rows == [("fp", "W32A32"), ("ptq", "W8A8"), *low]


def test_axes_that_tell_rows_apart_get_a_column(make: Make) -> None:
    both = [make("ptq", seed=0), make("ptq", seed=1)]
    assert [row["seed"] for row in cells(both)] == ["0", "1"]
    assert "quantizer" not in cells(both)[0]
    models = [make("ptq", model="a"), make("timestep_aware", model="b")]
    assert [row["model"] for row in cells(models)] == ["a", "b"]
    assert not {"seed", "model"} & cells([make("ptq"), make("timestep_aware", seed=1)])[0].keys()


def test_caption_says_the_protocol(make: Make) -> None:
    line = "net, protocol quick: n = 1,024, 10 DPMSolverMultistep steps, features of fashion-cnn 01234567, floor FID 1.23"
    assert line + ".\n" in to_markdown([make("ptq")])
    assert line in " ".join(shown([make("ptq")]).split())
    other = make("ptq", protocol={"floor": {"fid": 0.5, "n": 2048}})
    assert "floor FID 0.50 at n = 2,048.\n" in to_markdown([other])
    del other["protocol"]["floor"]
    assert "01234567.\n" in to_markdown([other])


def test_different_protocols_are_refused_by_name(make: Make) -> None:
    other = make("ptq", protocol={"hash": "0ddba11123", "name": "fid5k", "n": 5000})
    for write in (ladder_table, to_markdown):
        with pytest.raises(UserError) as caught:
            write([make("ptq"), other])
        message = str(caught.value)
        assert "quick: n = 1,024" in message
        assert "fid5k: n = 5,000" in message
        assert "\n" not in message
        assert "feedbeef" in message
        assert "0ddba111" in message


def test_same_name_but_another_hash_is_refused(make: Make) -> None:
    with pytest.raises(UserError):
        ladder_table([make("ptq"), make("timestep_aware", protocol={"hash": "0ddba11123"})])


def test_nothing_to_show_is_an_error() -> None:
    with pytest.raises(UserError, match="no records"):
        ladder_table([])


def test_failed_cells_are_shown_with_one_line(make: Make, failed: Record) -> None:
    line = "failed: net-reconstruction-w4a8-0 in quantization: ValueError: no [rows] left | at all"
    assert f"\n- {line}\n" in to_markdown([make("ptq"), failed])
    assert line in [text.strip() for text in shown([make("ptq"), failed]).splitlines()]
    row = cells([make("ptq"), failed])[1]
    assert (row["method"], row["FID"], row["IS"], row["time"]) == ("reconstruction", "failed", "-", "-")
    assert "Traceback" not in shown([failed]) + to_markdown([failed])
    failed["error"]["message"] = "x" * 500
    assert max(len(text.strip()) for text in shown([failed, make("ptq")]).splitlines() if "failed: " in text) <= LINE


def test_a_cell_that_failed_before_its_protocol_was_known(make: Make, failed: Record) -> None:
    del failed["protocol"]
    assert "protocol quick" in to_markdown([failed, make("ptq")])
    assert "no protocol recorded" in to_markdown([failed])


def test_terminal_table_fits_and_is_right_aligned(make: Make) -> None:
    small = make("ptq", {"fid": 5.0, "kid": 0.0001, "kid_std": 0.0001}, calib="uniform", costs={"total": {"seconds": 3540}})
    records = [make("fp", quantizer="none"), small, make("timestep_aware", {"fid": 464.69, "kid": 0.3214, "kid_std": 0.0123})]
    wide, narrow = shown(records, width=300), shown(records, width=110)
    assert max(len(line.rstrip()) for line in narrow.splitlines()) <= 110
    rows = [line for line in narrow.splitlines() if " W" in line]
    assert rows == [line for line in wide.splitlines() if " W" in line]
    ends = {line.index(fid) + len(fid) for line, fid in zip(rows, ("12.35", "5.00", "464.69"), strict=True)}
    assert len(ends) == 1


def test_markdown_escapes_and_aligns(make: Make) -> None:
    text = to_markdown([make("a|b")])
    header, rule, row = text.splitlines()[:3]
    assert "a\\|b" in row
    assert rule.count("---:") == 8
    assert header.count("|") == rule.count("|") == 12
    assert text.endswith("floor FID 1.23.\n")


def test_report_imports_no_machinery() -> None:
    code = "import sys, qdexp.report.table, qdexp.report.grid; print(*sys.modules)"
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    ours = {name for name in out if name.startswith("qdexp.")}
    assert all(name in ("qdexp.errors", "qdexp.files") or name.startswith("qdexp.report") for name in ours)
    assert not {"torch", "wandb", "hydra", "matplotlib"} & set(out)


def test_an_option_that_tells_rows_apart_gets_a_column_and_a_name(make: Make) -> None:
    few, many = make("ptq"), make("ptq")
    few["config"] = {"calib": {"timesteps": 2, "rows": 3}, "out": "a"}
    many["config"] = {"calib": {"timesteps": 5, "rows": 3}, "out": "b"}
    rows = cells([few, many])
    assert [row["timesteps"] for row in rows] == ["2", "5"]
    assert not {"calib.rows", "out"} & set(rows[0])
    assert row_names([few, many]) == ["ptq 2", "ptq 5"]
    assert row_names([few, make("fp")])[1] == "fp"
