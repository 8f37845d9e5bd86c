"""`python -m qdexp.report`: what it writes, and the page in a real browser."""

import copy
import json
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from browser import Browser
from study import Study

from qdexp.errors import UserError
from qdexp.report.__main__ import main

Report = Callable[..., str]


@pytest.fixture
def report(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Report:
    """``report(*arguments)``: what ``python -m qdexp.report`` prints, without a new process."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["qdexp.report", *map(str, arguments)])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return run


def test_a_sweep_by_name_gives_tables_figures_and_page(report: Report, study: Study, tmp_path: Path) -> None:
    printed = report(study.name, "--out", study.out, "--to", tmp_path)
    assert "timestep_aware" in printed
    assert str(tmp_path / "index.html") in printed
    names = {path.name for path in tmp_path.iterdir()}
    drawn = {
        f"{name}.{kind}" for name in ("ladder", "curves", "ranges", "shortcuts", "layers", "samples") for kind in ("pdf", "png")
    }
    assert names == drawn | {"table.md", "table.tex", "table.csv", "index.html"}
    assert all((tmp_path / name).read_bytes().startswith(b"%PDF" if name.endswith("pdf") else b"\x89PNG") for name in drawn)


def test_without_a_name_the_newest_sweep_is_reported(report: Report, study: Study, tmp_path: Path) -> None:
    printed = report("--out", study.out, "--to", tmp_path, "--no-figures")
    assert printed.startswith(f"sweep {study.name}, the newest in {study.out}\n")
    with pytest.raises(UserError, match=f"--out {tmp_path}: no sweep was started here"):
        report("--out", tmp_path)


def test_records_by_name_do_as_well(report: Report, study: Study, tmp_path: Path) -> None:
    paths = sorted((study.out / "records").glob("*ptq*"))
    assert "± " in report(*paths, "--to", tmp_path, "--no-figures")
    assert "fp" not in (tmp_path / "table.md").read_text().split("protocol")[0]
    assert not list(tmp_path.glob("*.pdf"))


def test_an_unknown_sweep_is_answered_with_those_there(report: Report, study: Study) -> None:
    with pytest.raises(UserError, match=r"nightly: no sweep in .*; sweeps there: study"):
        report("nightly", "--out", study.out)


def test_while_a_sweep_runs_the_report_says_what_is_missing(report: Report, study: Study, tmp_path: Path) -> None:
    sweep = tmp_path / "sweeps" / "half"
    sweep.mkdir(parents=True)
    (tmp_path / "records").mkdir()
    done, waiting = study.records[:3], study.records[3]
    for record in done:
        (tmp_path / "records" / f"{record['cell']}.json").write_text(json.dumps(record))
    (sweep / "cells.json").write_text(
        json.dumps({record["cell"]: {"label": record["cell"], "entries": []} for record in [*done, waiting]})
    )
    printed = report("half", "--out", tmp_path, "--no-figures")
    assert f"without a record yet: 1: {waiting['cell']}" in printed
    assert waiting["cell"] in (tmp_path / "reports" / "half" / "index.html").read_text()


def test_what_cannot_be_made_is_told_before_anything_is_written(report: Report, study: Study, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(UserError, match=r"--to .*file/below: .*; choose a folder that can be written to"):
        report(study.name, "--out", study.out, "--to", tmp_path / "file" / "below")
    cell = {"where": {"method": "squant"}, "numbers": {"fid": 1}}
    (tmp_path / "paper.json").write_text(json.dumps({"title": "A paper", "source": "here", "cells": [cell]}))
    with pytest.raises(UserError, match="A paper reports none of these cells"):
        report(study.name, "--out", study.out, "--to", tmp_path / "to", "--reported", tmp_path / "paper.json")
    assert not list((tmp_path / "to").iterdir())


def test_a_torn_list_of_cells_is_named(report: Report, tmp_path: Path) -> None:
    (tmp_path / "sweeps" / "half").mkdir(parents=True)
    (tmp_path / "sweeps" / "half" / "cells.json").write_text('{"a": {"la')
    with pytest.raises(UserError, match=r"cells\.json is no list of cells \(.*\): delete it and run its sweep again"):
        report("half", "--out", tmp_path)


def test_records_of_the_first_format_make_a_report_without_pooling(report: Report, study: Study, tmp_path: Path) -> None:
    (tmp_path / "records").mkdir()
    for record in study.records:
        old = {name: part for name, part in record.items() if name not in ("identity", "files")} | {"format": 1}
        (tmp_path / "records" / f"{record['cell']}.json").write_text(json.dumps(old))
    report(tmp_path / "records", "--no-figures")
    rows = (tmp_path / "reports" / tmp_path.name / "table.md").read_text().split("\n\n")[0].splitlines()[2:]
    assert [row.split("|")[1].strip() for row in rows[:3]] == ["fp", "ptq seed=0", "ptq seed=1"]
    assert len(rows) == len(study.records)


def test_one_of_several_protocols_is_chosen(report: Report, study: Study, tmp_path: Path) -> None:
    records = tmp_path / "records"
    records.mkdir()
    for record in study.records:
        other = copy.deepcopy(record)
        other["protocol"] |= {"hash": "0ddba11", "n": 5000}
        other["cell"] += "-other"
        for one in (record, other):
            (records / f"{one['cell']}.json").write_text(json.dumps(one))
    with pytest.raises(UserError, match="numbers of different protocols do not compare"):
        report(records, "--no-figures")
    assert "n = 5,000" in report(records, "--no-figures", "--protocol", "0ddba")
    with pytest.raises(UserError, match=r"--protocol fid50k: no record of it; protocols there: quick \("):
        report(records, "--no-figures", "--protocol", "fid50k")


@pytest.fixture
def page(tab: Browser, report: Report, study: Study, tmp_path: Path) -> Browser:
    """The page of a study, one of whose cells has failed with a message that is no markup."""
    records = tmp_path / "records"
    records.mkdir()
    for record in study.records:
        (records / f"{record['cell']}.json").write_text(json.dumps(record))
    error = {"stage": "samples", "type": "ValueError", "message": "</script><b>", "traceback": "Traceback </script>\n"}
    failed = {**study.records[1], "cell": "broken-cell", "status": "failed", "metrics": {}, "costs": {}, "error": error}
    (records / "broken-cell.json").write_text(json.dumps(failed))
    for name in ("store", "executions.jsonl"):
        (tmp_path / name).symlink_to(study.out / name)
    report(records, "--to", tmp_path, "--no-figures")
    tab.open(tmp_path / "index.html")
    return tab


NAMES = "return [...document.querySelectorAll('#table tbody tr')].map(row => row.dataset.id)"
SET = "const box = document.querySelector(arguments[0]); box.value = arguments[1]; box.dispatchEvent(new Event(arguments[2]))"
CLICK = "document.querySelector(arguments[0]).click()"


def test_the_page_opens_without_a_complaint_and_stands_alone(page: Browser) -> None:
    assert len(page.run(NAMES)) == 8
    assert page.run("return document.querySelectorAll('#figures svg').length") >= 5
    assert page.run("return [...document.images].every(image => image.naturalWidth > 0 && image.src.startsWith('data:'))")
    assert page.run("return performance.getEntriesByType('resource').filter(one => !one.name.startsWith('data:')).length") == 0
    assert page.complaints() == []


def test_the_page_sorts_both_ways_and_keeps_what_has_no_number_last(page: Browser) -> None:
    values = f"{NAMES}.map(id => CELLS.get(id).numbers.fid?.[0] ?? null)"
    page.run(CLICK, "th[data-key=fid]")
    up = page.run(values)
    page.run(CLICK, "th[data-key=fid]")
    down = page.run(values)
    assert up[:-1] == sorted(up[:-1]) == down[:-1][::-1]
    assert up[-1] is down[-1] is None


def test_the_page_filters_by_words_and_axes_and_pools_seeds(page: Browser) -> None:
    page.run(SET, "#filter", "ptq 1", "input")
    assert 0 < len(page.run(NAMES)) < 8
    page.run(SET, "#filter", "no such word", "input")
    assert "No row holds all of these words" in page.run("return document.getElementById('table').textContent")
    page.run(SET, "#filter", "", "input")
    page.run(SET, "select[name=method]", "qdiffusion", "change")
    assert len(page.run(NAMES)) == 2
    page.run(CLICK, "#pool")
    assert len(page.run(NAMES)) == 1


SHADE = "return difference(DATA.metrics.find(one => one.key === 'fid'), arguments[0], arguments[1]).className"
COMPARED = "return DATA.metrics.map(one => paired(CELLS.get(arguments[0]), CELLS.get(arguments[1]), one.key))"


def test_a_difference_is_coloured_where_nothing_else_moves_it(page: Browser, study: Study) -> None:
    assert [page.run(SHADE, interval, True) for interval in ([1, 0.5, 1.5], [-1, -1.5, -0.5], [1, -1, 3])] == [
        "up",
        "down",
        "dull",
    ]
    assert page.run(SHADE, [1, 0.5, 1.5], False) == ""
    notes = "return document.getElementById('notes').textContent"
    assert page.run(notes).startswith("each row is one seed: its intervals are over the images alone. ±: half the width")
    page.run(CLICK, "#pool")
    assert page.run(notes).startswith(
        "±: half the width of a 95 % interval over the images (delete-group jackknife) and, where"
    )
    assert page.run("return DATA.lines.map(line => line.verdict)") == [False, True, True, True]
    assert not any(page.run("return DATA.cells.map(cell => cell.verdict)")), "a cell is one seed"
    one, other = (next(r["cell"] for r in study.records if r["axes"]["method"] == name) for name in ("ptq", "qdiffusion"))
    clear = [found for found in page.run(COMPARED, one, other) if found and (found[1] > 0 or found[2] < 0)]
    page.run("location.hash = `compare=${arguments[0]},${arguments[1]}`", one, other)
    page.run("return new Promise(done => setTimeout(done, 50))")
    assert clear and page.run("return document.querySelectorAll('#compare .up, #compare .down').length") == 0


def test_a_click_on_a_cell_tells_all_of_it(page: Browser, study: Study) -> None:
    record = next(record for record in study.records if record["axes"]["method"] == "qdiffusion")
    page.run(CLICK, f"tr[data-id='{record['cell']}']")
    page.run("return new Promise(done => setTimeout(done, 50))")
    text = page.run("return document.getElementById('cell').textContent")
    assert page.run("return location.hash") == f"#cell={record['cell']}"
    for told in (record["provenance"]["python"], record["keys"]["scales"], "quantizer.steps.split.scope", '"entry": "samples-'):
        assert told in text
    assert page.run("return document.querySelectorAll('#cell svg').length") == 4
    assert page.complaints() == []


def test_a_failed_cell_shows_its_error_as_text(page: Browser) -> None:
    page.run("location.hash = 'cell=broken-cell'")
    page.run("return new Promise(done => setTimeout(done, 50))")
    assert "Traceback </script>" in page.run("return document.getElementById('cell').textContent")
    assert page.complaints() == []


def test_two_cells_side_by_side_with_the_difference_of_their_configs(page: Browser, study: Study) -> None:
    one, other = (
        next(r for r in study.records if r["axes"]["method"] == method) for method in ("timestep_aware", "qdiffusion")
    )
    for record in (one, other):
        page.run(CLICK, f"tr[data-id='{record['cell']}'] input")
    page.run("return new Promise(done => setTimeout(done, 50))")
    differs = page.run(
        "return [...document.querySelectorAll('#differs tbody tr')].map(row => [...row.cells].map(cell => cell.textContent))"
    )
    assert ["quantizer.steps.split.scope", "off", "skip"] in differs
    assert not [row for row in differs if row[1] == row[2]]
    value, low, high = page.run(
        "return paired(CELLS.get(arguments[1]), CELLS.get(arguments[0]), 'fid')", one["cell"], other["cell"]
    )
    assert value == pytest.approx(other["metrics"]["fid"] - one["metrics"]["fid"], abs=1e-6)
    assert low < value < high
    assert page.complaints() == []


def test_the_page_has_a_light_and_a_dark_side(page: Browser) -> None:
    paper = "return getComputedStyle(document.body).backgroundColor"
    first = page.run(paper)
    page.run(CLICK, "#theme")
    assert page.run(paper) != first
