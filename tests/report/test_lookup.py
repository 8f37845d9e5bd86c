"""What a checkpoint may be called."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdexp import record as records
from qdexp.errors import UserError
from qdexp.layout import Layout
from qdexp.report.lookup import checkpoint

Make = Callable[..., dict[str, Any]]


@pytest.fixture
def out(make: Make, failed: dict[str, Any], tmp_path: Path) -> Path:
    """Two sweeps: an ablation at W4A8, and ptq at W8A8 and at two seeds."""
    written = {}
    for name, record in {
        "fp": make("fp"),
        "ptq": make("ptq"),
        "full": make("qdiffusion"),
        "wide": make("ptq", quant="w8a8", weight_bits=8),
        "seeded": make("ptq", quant="w8a8", weight_bits=8, seed=1),
        "failed": failed,
    }.items():
        folders = {} if name in ("fp", "failed") else {"checkpoint": f"store/act-{name}/checkpoint"}
        written[name] = record | ({} if name == "failed" else {"artifacts": {"samples": f"store/samples-{name}", **folders}})
        records.write(tmp_path, written[name])
    for sweep, names in {"ladder": ("fp", "ptq", "full", "failed"), "wide": ("wide", "seeded")}.items():
        path = Layout(tmp_path).sweep(sweep).cells
        path.parent.mkdir(parents=True)
        labels = {
            written[name]["cell"]: f"{written[name]['axes']['method']} {written[name]['axes']['quant']}" for name in names
        }
        path.write_text(json.dumps({cell: {"label": label, "entries": []} for cell, label in labels.items()}))
    return tmp_path


def cell(out: Path, text: str) -> str:
    return next(
        path.stem for path in sorted((out / "records").iterdir()) if text in path.stem and "reconstruction" not in path.stem
    )


@pytest.mark.parametrize(("given", "entry"), [
    ("qdiffusion", "full"),
    ("QDiffusion", "full"),
    ("qdiffusion w4a8", "full"),
    ("net-qdiffusion", "full"),
    ("ptq w4a8", "ptq"),
    ("ptq seed=0", "wide"),  # as the table of its sweep has it
    ("ptq seed=1", "seeded"),
    ("ptq W8A8 seed=1", "seeded"),  # as one of all records
])  # fmt: skip
def test_as_it_is_printed(out: Path, given: str, entry: str) -> None:
    assert checkpoint(given, out) == out / f"store/act-{entry}/checkpoint"


def test_by_its_name_its_record_and_its_folder(out: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    name, expected = cell(out, "qdiffusion"), out / "store/act-full/checkpoint"
    assert checkpoint(name, out) == expected
    for given in (out / "records" / f"{name}.json", str(out / "records" / f"{name}.json")):
        assert checkpoint(given, Path("elsewhere")) == expected
    monkeypatch.chdir(out / "records")
    assert checkpoint(f"{name}.json", Path("elsewhere")) == expected
    monkeypatch.chdir(tmp_path)
    folder = tmp_path / "qdiffusion"
    folder.mkdir()
    assert checkpoint("qdiffusion", out) == Path("qdiffusion")
    assert checkpoint(folder, out) == folder


@pytest.mark.parametrize(("given", "told"), [
    ("ptq", ["ptq: there are net-ptq-w", "; name one of them"]),
    ("ptq w8a8", ["ptq w8a8: there are net-ptq-w8a8", "; name one of them"]),
    ("net-ptq-w8", ["net-ptq-w8: there are net-ptq-w8a8"]),
    ("qdifusion", ["no folder of a checkpoint, no record, and no cell in", "records, did you mean qdiffusion?"]),
    ("net-qdifusion-w4a8", ["did you mean qdiffusion w4a8?"]),
    ("records/net-qdifusion-w4a8.json", ["no such record, did you mean records/net-qdiffusion-w4a8-"]),
    ("store/nothing.json", ["store/nothing.json: there is no such record; there are none"]),
    ("nothing like it", ["no cell in", "; there are net-", "and 1 more"]),
    ("fp", ["net-fp-full-", "is in full precision, so there is nothing quantized to load"]),
    ("reconstruction", ["net-reconstruction-w4a8-", "failed (act), so it has no checkpoint: run it again"]),
])  # fmt: skip
def test_what_it_cannot_be_is_told_in_one_line(
    out: Path, given: str, told: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:  # fmt: skip
    monkeypatch.chdir(out)
    with pytest.raises(UserError) as error:
        checkpoint(given, out)
    assert "\n" not in str(error.value)
    for text in told:
        assert text in str(error.value)


def test_one_checkpoint_under_two_protocols_is_one(out: Path, make: Make) -> None:
    twin = make("qdiffusion", protocol={"hash": "other"}, seed=7)
    records.write(out, twin | {"artifacts": {"checkpoint": "store/act-full/checkpoint"}})
    assert checkpoint("qdiffusion", out) == out / "store/act-full/checkpoint"


def test_an_empty_output_folder(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no cell in .*; there are none"):
        checkpoint("ptq", tmp_path)


def test_any_other_file_is_no_record(tmp_path: Path) -> None:
    (tmp_path / "checkpoint.json").write_text("{}")
    with pytest.raises(UserError, match="is not a record of a cell: name one"):
        checkpoint(tmp_path / "checkpoint.json", tmp_path)


def test_a_sweep_that_cannot_be_read_hides_no_cell(out: Path) -> None:
    Layout(out).sweep("ladder").cells.write_text("{")
    assert checkpoint("qdiffusion", out) == out / "store/act-full/checkpoint"
