"""How the page is read: on a phone and on a desk, with a mouse and without one."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from browser import Browser
from study import Study

from qdexp.report import page
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.page.content import content
from qdexp.report.sources import Source

Open = Callable[[list[Any], Path], Browser]

PHONE = (390, 844)
TAB, ENTER, ESCAPE = "\ue004", "\ue007", "\ue00c"
CLICK = "document.querySelector(arguments[0]).click()"
SETTLED = "return new Promise(done => requestAnimationFrame(() => requestAnimationFrame(() => done(true))))"
FOCUS = """
const one = document.activeElement;
return one.ariaLabel || one.id || `${one.closest('th, td')?.tagName} ${one.textContent}`;
"""
OUTSIDE = """
const edge = document.documentElement.clientWidth, boxes = '.scroll, .edged';
return [...document.querySelectorAll(arguments[0])].filter(one => !one.parentElement.closest(boxes))
  .filter(one => one.getBoundingClientRect().right > edge + 1).map(one => one.outerHTML.slice(0, 200));
"""
TEXTS = """
return [...document.querySelectorAll('svg text')].filter(one => one.getClientRects().length)
  .map(one => parseFloat(getComputedStyle(one).fontSize) * one.ownerSVGElement.getScreenCTM().a);
"""


@pytest.fixture
def open_page(tab: Browser, tmp_path: Path) -> Open:
    """``open_page(records, out)``: the page of the records, whose store lies in ``out``."""

    def opened(records: list[Any], out: Path) -> Browser:
        evidence = Evidence(out)
        page.write(content(Source("study", out, records, []), evidence, compare(records, evidence)), tmp_path / "index.html")
        tab.complaints()
        tab.open(tmp_path / "index.html", 1280, 900)
        return tab

    return opened


@pytest.fixture
def study_page(open_page: Open, study: Study) -> Browser:
    return open_page(study.records, study.out)


def pair(study: Study) -> list[str]:
    return [next(r["cell"] for r in study.records if r["axes"]["method"] == name) for name in ("ptq", "qdiffusion")]


def test_on_a_phone_nothing_scrolls_sideways_and_figures_can_be_read(study_page: Browser, study: Study) -> None:
    study_page.resize(*PHONE)
    one, other = pair(study)
    for address, place in (("", "html"), (f"cell={one}", "#cell"), (f"compare={one},{other}", "#compare")):
        study_page.run("location.hash = arguments[0]", address)
        study_page.run(SETTLED)
        wide, inner = study_page.run(
            "const one = document.querySelector(arguments[0]); return [one.scrollWidth, one.clientWidth]", place
        )
        assert wide <= inner <= PHONE[0]
        assert study_page.run(OUTSIDE, f"{place} *") == []
        assert min(study_page.run(TEXTS)) >= 9
    assert study_page.complaints() == []


def test_figures_keep_the_size_of_their_text_where_the_window_changes(study_page: Browser) -> None:
    for size in ((1280, 900), (900, 900), PHONE, PHONE[::-1], (1600, 900)):
        study_page.resize(*size)
        study_page.run(SETTLED)
        assert 9 <= min(study_page.run(TEXTS)) <= max(study_page.run(TEXTS)) <= 13.5


def test_a_wide_table_scrolls_in_its_own_box_and_its_names_stay(study_page: Browser) -> None:
    study_page.resize(760, 900)
    study_page.run(SETTLED)
    box, edged = "document.querySelector('#overview .scroll')", "document.querySelector('#overview .edged')"
    wide, inner = study_page.run(f"return [{box}.scrollWidth, {box}.clientWidth]")
    assert wide > inner
    assert study_page.run("return document.documentElement.scrollWidth") <= 760
    assert study_page.run(f"return {edged}.classList.contains('more')"), "that there is more is seen"
    study_page.run(f"{box}.scrollLeft = 9999")
    study_page.run(SETTLED)
    assert not study_page.run(f"return {edged}.classList.contains('more')")
    left = "Math.round(document.querySelector('#table tbody td:nth-child(2)').getBoundingClientRect().left"
    assert study_page.run(f"return {left} - {box}.getBoundingClientRect().left)") == 32
    names = "return getComputedStyle(document.querySelector('#table tbody td:nth-child(2)')).backgroundColor"
    assert "0)" not in study_page.run(names), "nothing shines through"


def test_every_head_says_what_stands_below_it(study_page: Browser) -> None:
    for pooled in (False, True):
        titles = study_page.run(
            "return [...document.querySelectorAll('#table th button')].map(one => [one.textContent, one.title])"
        )
        assert len(titles) > 8
        assert [name for name, title in titles if not title or title == "undefined"] == []
        told = dict(titles)
        assert told["noise error x1000"].startswith("|eps_q - eps|^2 / |eps|^2 on trajectories of full precision")
        assert told["GBOPs"].endswith("Less is better.")
        assert told["PSNR to FP"].endswith("More is better.")
        assert ("seeds" in told) is pooled
        study_page.run(CLICK, "#pool")
    listed = study_page.run("return [...document.querySelectorAll('#meanings dt')].map(one => one.textContent)")
    assert {"cell", "FID", "FID \u2212 fp", "noise error x1000", "time", "floor", "precision"} <= set(listed)
    assert "real images" in study_page.run("return document.querySelector('#protocol abbr').title")


def test_without_a_mouse_a_row_is_opened_and_left_again(study_page: Browser, study: Study) -> None:
    study_page.run("document.querySelector('#filter').focus()")
    order = []
    for _ in range(40):
        study_page.press(TAB)
        order.append(study_page.run(FOCUS))
        if order[-1] == "TD fp":
            break
    axes = [f"rows of which {axis}" for axis in ("method", "quant", "quantizer", "calib", "seed")]
    assert order[: len(axes) + 2] == [*axes, "pool", "table of all rows"]
    assert order[-2:] == ["compare fp", "TD fp"]
    heads = order[len(axes) + 2 : -2]
    assert heads[0] == "TH cell"
    assert len(heads) == study_page.run("return document.querySelectorAll('#table th button').length")
    study_page.press(ENTER)
    study_page.run(SETTLED)
    assert study_page.run("return document.getElementById('cell').open")
    assert study_page.run(FOCUS).endswith("← back")
    study_page.press(ESCAPE)
    study_page.run(SETTLED)
    assert not study_page.run("return document.getElementById('cell').open")
    assert study_page.run(FOCUS) == "TD fp", "one is where one was"
    assert study_page.run("return location.hash") == ""
    study_page.run("document.querySelector('th[data-key=fid] button').focus()")
    study_page.press(ENTER)
    assert study_page.run("return document.querySelector('th[data-key=fid]').ariaSort") == "ascending"
    assert study_page.run(FOCUS) == "TH FID ↑"


def test_whatever_is_chosen_or_pressed_has_a_name(study_page: Browser, study: Study) -> None:
    study_page.run("location.hash = `compare=${arguments[0]},${arguments[1]}`", *pair(study))
    study_page.run(SETTLED)
    nameless = """
    return [...document.querySelectorAll('select, input, button, svg[role=img], dialog, [role=region]')]
      .filter(one => !one.ariaLabel && !(one.tagName === 'BUTTON' && one.textContent)).map(one => one.outerHTML.slice(0, 200));
    """
    assert study_page.run(nameless) == []


def test_a_comparison_opens_where_one_is_and_closes_there(study_page: Browser, study: Study) -> None:
    one, other = pair(study)
    study_page.resize(1280, 400)
    study_page.run("scrollTo(0, 333)")
    for cell in (one, other):
        study_page.run(CLICK, f"tr[data-id='{cell}'] input")
    study_page.run(SETTLED)
    assert study_page.run("return [scrollY, document.getElementById('compare').open]") == [333, True]
    study_page.run(CLICK, "#compare .back")
    study_page.run(SETTLED)
    assert study_page.run("return [scrollY, document.getElementById('compare').open, location.hash]") == [333, False, ""]
    assert study_page.run("return document.querySelectorAll('#table input:checked').length") == 2
    study_page.run("location.hash = 'compare'")
    study_page.run(SETTLED)
    assert study_page.run("return [...document.querySelectorAll('#compare select')].map(one => one.value)") == [one, other]


def test_what_has_no_interval_is_compared_too(study_page: Browser, study: Study) -> None:
    study_page.run("location.hash = `compare=${arguments[0]},${arguments[1]}`", *pair(study))
    study_page.run(SETTLED)
    rows = study_page.run(
        "return [...document.querySelectorAll('#compare tr')].map(row => [...row.cells].map(one => one.innerText))"
    )
    told = {row[0]: row[-1] for row in rows}
    assert told["noise error x1000"].startswith("-")
    assert "[" not in told["noise error x1000"]
    assert "[" in told["FID"]
    title = "return [...document.querySelectorAll('#figures h3')].map(one => one.textContent)"
    assert study_page.run(title)[:2] == ["FID, with 95 % intervals", "noise error x1000"]


FRONTS = """
return [...document.querySelectorAll('#figures h3')].map(one => one.textContent).filter(text => text.includes('FID against'))
"""


def test_a_front_is_shown_where_quantized_lines_differ_in_a_cost(
    study_page: Browser, open_page: Open, make: Callable[..., Any], tmp_path: Path
) -> None:
    assert study_page.run(FRONTS) == []
    records = [make("fp", {"size_stored_mb": 5.1}), make("ptq", {"size_stored_mb": 0.7}), make("gptq", {"size_stored_mb": 0.4})]
    opened = open_page(records, tmp_path)
    assert opened.run(FRONTS) == ["FID against stored MB"]
    legend = "return [...document.querySelectorAll('#figures .legend')].map(one => one.innerText.trim())"
    assert any(text.endswith("Pareto front") for text in opened.run(legend))


def test_lines_that_lie_on_each_other_are_told_apart(open_page: Open, make: Callable[..., Any], tmp_path: Path) -> None:
    curves = {"timestep": [900, 500, 100], "teacher_forced": [0.1, 0.2, 0.3], "free_running": [0.0, 0.1, 0.2]}
    opened = open_page([make(name, curves=curves) for name in ("ptq", "qdiffusion")], tmp_path)
    for title in ("Error of each step alone", "Error accumulated on the quantized network's own trajectory"):
        chart = f'document.querySelector("svg[aria-label=\\"{title}\\"]")'
        dashes = opened.run(
            f"return [...{chart}.querySelectorAll('polyline')].map(one => one.getAttribute('stroke-dasharray'))"
        )
        assert dashes == ["none", "6 4"], "the dashed one on top"
        ticks = opened.run(f"return [...{chart}.querySelectorAll('text[text-anchor=middle]')].map(one => one.textContent)")
        assert ticks[:4] == ["200", "400", "600", "800"], "of both charts, though the second has no error at the first call"
