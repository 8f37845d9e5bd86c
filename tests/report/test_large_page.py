"""The page of some thousand records: small to open, the rest of it in scripts beside it, in a real browser from the disk."""

import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from browser import Browser

from qdexp.report import page
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.page import parts
from qdexp.report.page.content import content
from qdexp.report.page.parts import Parts
from qdexp.report.sources import Source
from qdexp.statistics.estimate import Estimate

Record = dict[str, Any]

CELLS = 2001
HOSTILE = "</script><b>'\\' \u2028 ${DATA} <!--"
NAMES = "return [...document.querySelectorAll('#table tbody tr')].map(row => row.dataset.id)"
SET = "const box = document.querySelector(arguments[0]); box.value = arguments[1]; box.dispatchEvent(new Event(arguments[2]))"
CLICK = "document.querySelector(arguments[0]).click()"
SCRIPTS = "return [...document.scripts].filter(one => one.src).map(one => one.src)"
TEXT = """
const until = Date.now() + 5000, [place, words] = arguments;
return new Promise(done => (function look() {
  const text = document.querySelector(place).textContent;
  text.includes(words) || Date.now() > until ? done(text) : setTimeout(look, 10);
})());
"""


class Large(NamedTuple):
    """A page, and the records that it shows."""

    path: Path
    records: list[Record]


@pytest.fixture(scope="module")
def large(make: Callable[..., Record], tmp_path_factory: pytest.TempPathFactory) -> Large:
    """Full precision, and a thousand settings of two seeds, each with as many options as a real cell and curves."""
    others = {f"group{number}": {f"option{one}": f"value {one}" for one in range(10)} for number in range(12)}
    curves = {"timestep": [*range(900, -1, -100)], "teacher_forced": [0.125] * 10, "free_running": [0.25] * 10}

    def quantized(number: int) -> Record:
        seed, setting = number % 2, number // 2
        told = {"calib": {"timesteps": setting}, "note": HOSTILE, "__proto__": {"own": "kept"}}
        provenance = {"host": f"host{number}", "python": "3.11.7"}
        return make("ptq", {"fid": 10 + setting / 7}, seed=seed, config=others | told, curves=curves, provenance=provenance)

    records = [make("fp", config=others), *map(quantized, range(CELLS - 1))]
    out = tmp_path_factory.mktemp("large")
    evidence = Evidence(out)
    comparison = compare(records, evidence)
    rng = np.random.default_rng(0)
    estimates = {r["cell"]: {"fid": Estimate(r["metrics"]["fid"], r["metrics"]["fid"] + rng.random(32))} for r in records}
    source = Source("large", out, records, [])
    page.write(content(source, evidence, replace(comparison, estimates=estimates)), out / "index.html")
    return Large(out / "index.html", records)


@pytest.fixture
def opened(tab: Browser, large: Large) -> Browser:
    tab.complaints()
    tab.open(large.path)
    return tab


def test_it_is_small_to_open(large: Large) -> None:
    assert large.path.stat().st_size < 60_000 + 500 * CELLS
    beside = [*large.path.with_name("index-details").iterdir()]
    assert max(path.stat().st_size for path in beside) < 1.1 * parts.PART


def test_it_opens_with_its_first_rows_and_the_scripts_of_its_figures(opened: Browser) -> None:
    assert opened.run("return document.getElementById('count').textContent") == f"{CELLS} rows"
    assert len(opened.run(NAMES)) == 200
    assert "Error of each step alone" in opened.run(TEXT, "#figures", "Error of each step alone")
    assert len(opened.run(SCRIPTS)) == 1
    assert "Of the first 60 of 1001 rows." in opened.run("return document.getElementById('figures').textContent")
    opened.run("document.getElementById('more').scrollIntoView()")
    opened.run("return new Promise(done => setTimeout(done, 200))")
    assert len(set(opened.run(NAMES))) == 400
    assert opened.complaints() == []


def test_it_filters_sorts_and_pools_all_rows(opened: Browser, large: Large) -> None:
    fids = {record["cell"]: record["metrics"]["fid"] for record in large.records}
    for order in (sorted(fids.values()), sorted(fids.values(), reverse=True)):
        opened.run(CLICK, "th[data-key=fid]")
        assert [fids[name] for name in opened.run(NAMES)] == order[:200]
    opened.run(SET, "#filter", "timesteps=777 seed=1", "input")
    (name,) = opened.run(NAMES)
    (record,) = (record for record in large.records if record["cell"] == name)
    assert (record["config"]["calib"]["timesteps"], record["axes"]["seed"]) == (777, 1)
    opened.run(SET, "#filter", "", "input")
    opened.run(CLICK, "#pool")
    assert opened.run("return document.getElementById('count').textContent") == f"{1 + CELLS // 2} rows"
    assert opened.complaints() == []


def test_a_click_reads_the_rest_of_a_cell(opened: Browser, large: Large) -> None:
    record = large.records[-1]
    assert not opened.run("return CELLS.get(arguments[0]).told", record["cell"])
    opened.run("location.hash = `cell=${arguments[0]}`", record["cell"])
    text = opened.run(TEXT, "#cell", record["provenance"]["host"])
    assert record["provenance"]["host"] in text
    assert HOSTILE in text
    assert "__proto__.ownkept" in text
    assert len(opened.run(SCRIPTS)) == 2
    assert opened.run("return document.querySelectorAll('#cell svg').length") == 2
    assert opened.complaints() == []


def test_two_cells_of_other_scripts_are_compared(opened: Browser, large: Large) -> None:
    one, other = large.records[1], large.records[-2]
    opened.run("location.hash = `compare=${arguments[0]},${arguments[1]}`", one["cell"], other["cell"])
    assert "calib.timesteps0999" in opened.run(TEXT, "#compare", "calib.timesteps")
    value, low, high = opened.run(
        "return paired(CELLS.get(arguments[1]), CELLS.get(arguments[0]), 'fid')", one["cell"], other["cell"]
    )
    assert low < value < high
    assert value == pytest.approx(other["metrics"]["fid"] - one["metrics"]["fid"], abs=1e-6)
    assert opened.complaints() == []


def test_details_that_do_not_lie_beside_the_page_are_named(tab: Browser, large: Large, tmp_path: Path) -> None:
    shutil.copy(large.path, tmp_path)
    tab.open(tmp_path / "index.html")
    tab.run("location.hash = `cell=${arguments[0]}`", large.records[-1]["cell"])
    assert "cannot be read: it has to lie beside this page" in tab.run(TEXT, "#cell", "beside")
    assert "cannot be read" in tab.run(TEXT, "#figures", "cannot be read")
    assert len(tab.run(NAMES)) == 200
    tab.open(large.path)
    assert tab.complaints(), "the browser says it too"


def told(size: int, cells: int) -> list[tuple[str, dict[str, Any]]]:
    return [(f"cell{number}", {"log": f"{number} ".ljust(size, "x")}) for number in range(cells)]


def test_few_details_are_within_the_page_and_what_another_page_had_beside_it_goes(tmp_path: Path) -> None:
    folder = tmp_path / "details"
    many = Parts(folder, told(parts.PART, 12))
    assert many.inside == []
    assert {f"details/{path.name}" for path in folder.iterdir()} == set(many.beside)
    assert [many.of[f"cell{number}"] for number in range(12)] == sorted(many.of.values())
    fewer = Parts(folder, told(parts.PART, 10))
    assert set(many.beside) - set(fewer.beside)
    assert {f"details/{path.name}" for path in folder.iterdir()} >= {*many.beside, *fewer.beside}, "while both may be open"
    fewer.remove_others()
    assert {f"details/{path.name}" for path in folder.iterdir()} == set(fewer.beside)
    few = Parts(folder, told(10, 3))
    few.remove_others()
    assert (len(few.inside), few.beside, folder.exists()) == (1, [], False)
