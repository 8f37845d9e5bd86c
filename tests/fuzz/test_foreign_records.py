"""Records that anybody may have written: each ends in a table, a page and a run, or in one line that names its file."""

import io
import json
import sys
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, examples, mutated
from rich.console import Console

from qdexp import files
from qdexp.errors import UserError
from qdexp.layout import Layout
from qdexp.record import read_records, readable
from qdexp.report import page, tables
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.report.frame import load_records
from qdexp.report.lookup import find
from qdexp.report.page.content import content
from qdexp.report.sources import open_source
from qdexp.store import pruning
from qdexp.sweep.listed import Listed
from qdexp.sweep.status import show
from qdexp.tracking import mirror

Qdexp = Callable[..., tuple[int, str, str]]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("records") / "out"


@pytest.fixture
def sweep(qdexp: Qdexp, folder: Path) -> tuple[Path, Path, dict[str, Any]]:
    """The records of a real sweep, run once: that of full precision, that of a method, and what the latter holds, without the
    seal: as foreign software may write it, which knows of none."""
    kept = folder.with_name("kept.json")
    if not kept.exists():
        code, _, err = qdexp("-m", "method=fp,ptq", "inspection.rows=4", f"out={folder}")
        assert (code, err) == (0, "")
        kept.write_bytes(next((folder / "records").glob("tiny-ptq-*.json")).read_bytes())
    record = files.read_sealed(kept)
    del record[files.SEAL]
    (full,) = (folder / "records").glob("tiny-fp-*.json")
    return full, full.with_name(f"{record['cell']}.json"), record


def tried(work: Callable[[], object]) -> None:
    """The work ends well, or in one line."""
    try:
        work()
    except UserError as error:
        assert str(error)


def read_everywhere(out: Path, good: Path, bad: Path, pages: bool) -> None:
    """Whatever reads records; the good one is always shown."""
    told = io.TextIOWrapper(io.BytesIO(), "utf-8")
    standard, sys.stderr = sys.stderr, told
    try:
        found = readable([good, bad])
    finally:
        sys.stderr = standard
    told.flush()
    lines = told.buffer.getvalue().decode()
    assert [json.loads(good.read_text())["cell"]] == [record["cell"] for record in found][:1]
    assert len(found) == 2 or (lines.startswith(f"qdexp: left out: {bad} ") and lines.count("\n") == 1)
    console, evidence = Console(file=told, width=150), Evidence(out)
    protocols = defaultdict(list)
    for record in found:
        protocols[record["protocol"]["hash"]].append(record)
    for group in protocols.values():
        tried(lambda group=group: compared(group, evidence, console, out))  # type: ignore[misc]
    for record in found:
        json.dumps([mirror.config(record, "trial"), mirror.summary(record), mirror.tags(record)])
        mirror.run_id("trial", record["cell"])
        tried(lambda record=record: find(record["cell"], out))  # type: ignore[misc]
    show(lambda: Listed(Layout(out).sweep("trial")), None, console)
    for work in (lambda: read_records([bad]), lambda: load_records(out), lambda: pruning.records(Layout(out))):
        tried(work)
    if pages:
        tried(lambda: written(out, evidence))


def compared(group: list[dict[str, Any]], evidence: Evidence, console: Console, out: Path) -> None:
    comparison = compare(group, evidence)
    console.print(tables.to_terminal(comparison, 150))
    for text in (tables.to_markdown, tables.to_latex, tables.to_csv):
        files.write_text(out / "table", text(comparison))


def written(out: Path, evidence: Evidence) -> None:
    source = open_source(["trial"], out)
    (out / "page").mkdir(exist_ok=True)
    page.write(content(source, evidence, compare(source.records, evidence), None), out / "page" / "index.html")


@examples(60)
@given(data=st.data())
def test_any_record(sweep: tuple[Path, Path, dict[str, Any]], folder: Path, data: st.DataObject) -> None:
    full, other, record = sweep
    other.write_text(json.dumps(data.draw(mutated(record))))
    read_everywhere(folder, full, other, pages=False)


@examples(20)
@given(data=st.data())
def test_any_bytes(sweep: tuple[Path, Path, dict[str, Any]], folder: Path, data: st.DataObject) -> None:
    full, other, record = sweep
    other.write_bytes(data.draw(damaged(json.dumps(record, indent=1).encode())))
    read_everywhere(folder, full, other, pages=False)


@pytest.mark.slow
@examples(150)
@given(data=st.data())
def test_any_record_on_a_page(sweep: tuple[Path, Path, dict[str, Any]], folder: Path, data: st.DataObject) -> None:
    """Few changes: with many of them a record is seldom whole. 30 s."""
    full, other, record = sweep
    other.write_text(json.dumps(data.draw(mutated(record, most=1))))
    read_everywhere(folder, full, other, pages=True)
