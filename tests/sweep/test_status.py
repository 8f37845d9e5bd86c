"""What `status` says of sweeps in which things went wrong: the truth, as it is, and never a traceback."""

import io
import json
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.layout import Layout
from qdexp.sweep import manifest, queue
from qdexp.sweep.freeze import read_config
from qdexp.sweep.launch import Frozen
from qdexp.sweep.listed import Listed
from qdexp.sweep.results import collect
from qdexp.sweep.status import Look, Status, show

HOSTILE = "size mismatch [/conv1] [bold]x[/] \\[red] |=1+1"


@pytest.fixture
def sweep(cell_of: Callable[..., Cell]) -> Frozen:
    frozen = Frozen([cell_of("method=fp")])
    frozen.write()
    return frozen


def shown(look: Look) -> str:
    console = Console(file=io.StringIO(), width=200)
    show(lambda: look, None, console)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def said(states: str) -> Callable[[Sequence[str]], dict[str, str]]:
    return lambda ids: dict.fromkeys(ids, states)


def test_messages_are_shown_as_they_are(sweep: Frozen) -> None:
    registry, written = manifest.Registry(sweep.out), manifest.read(sweep.out, "trial")
    registry.failed(written.nodes[0].id, {"type": "RuntimeError", "message": HOSTILE})
    assert f"{written.nodes[0].id}: RuntimeError: {HOSTILE}\n" in shown(Status(written, said("FAILED")))
    (cell,) = sweep.cells.values()
    cell.fail({"stage": "samples", "type": "RuntimeError", "message": HOSTILE, "traceback": ""})
    assert f"samples: RuntimeError: {HOSTILE}\n" in shown(Listed(sweep.folder))


@pytest.mark.parametrize(
    ("state", "expected"),
    [
        ("CANCELLED", "its job ended as CANCELLED"),
        (queue.LOST, "neither the queue nor accounting knows its job 7_1"),
        ("TIMEOUT", "its job ended as TIMEOUT"),
        ("OUT_OF_MEMORY", "its job ended as OUT_OF_MEMORY"),
    ],
)
def test_how_jobs_ended(sweep: Frozen, state: str, expected: str) -> None:
    registry, written = manifest.Registry(sweep.out), manifest.read(sweep.out, "trial")
    for number, node in enumerate(written.nodes):
        registry.submitted(node.id, f"7_{number + 1}", sweep.out / "log", "trial")
    text = shown(Status(written, said(state)))
    assert f"{written.nodes[0].id}: {expected}\n" in text
    assert "running" not in text.rpartition("jobs: ")[2]


@pytest.mark.parametrize("text", ["", "[]", "null", '{"id": 7}', '{"id": null, "sweep": []}', "\x00", "[" * 10_000])
def test_what_others_have_written_into_the_registry(sweep: Frozen, text: str) -> None:
    layout, written = Layout(sweep.out), manifest.read(sweep.out, "trial")
    layout.jobs.mkdir()
    for node in written.nodes:
        layout.job(node.id).write_text(text)
        layout.error(node.id).write_text(text)
    assert "it was never started" in shown(Status(written, said("COMPLETED")))


def test_a_clock_that_was_set_back(sweep: Frozen, monkeypatch: pytest.MonkeyPatch) -> None:
    written = manifest.read(sweep.out, "trial")
    (sweep.store.folder(written.nodes[0].entry)).mkdir(parents=True)
    (sweep.store.folder(written.nodes[0].entry) / "manifest.json").write_text(json.dumps({}))
    registry = manifest.Registry(sweep.out)
    for node in written.nodes[1:]:
        registry.submitted(node.id, "7", sweep.out / "log", "trial")
    assert "min left" in shown(Status(written, said("RUNNING")))
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now - 86400)
    text = shown(Status(written, said("RUNNING")))
    assert "running" in text and "min left" not in text


def test_the_end_of_one_shell_s_process_is_not_that_of_another_s(sweep: Frozen) -> None:
    registry, node = manifest.Registry(sweep.out), manifest.read(sweep.out, "trial").nodes[0].id
    registry.started(node, "first", sweep.out / "log", "trial")
    registry.started(node, "second", sweep.out / "log", "trial")
    registry.ended(node, "first", "FAILED")
    assert "state" not in registry.job(node)
    registry.ended(node, "second", "FAILED")
    assert registry.job(node)["state"] == "FAILED"


@pytest.mark.parametrize("text", ["", "[]", '{"model": '])
def test_a_truncated_config_is_one_line(sweep: Frozen, text: str) -> None:
    written = manifest.read(sweep.out, "trial")
    (entry,) = written.cells.values()
    sweep.folder.config(entry.key).write_text(text)
    with pytest.raises(UserError, match=rf"{entry.key}\.json is truncated, or no config of a cell \(.*\): submit"):
        read_config(written, entry.key)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "is truncated, or not what was written"),
        ("[]", "is truncated, or not what was written"),
        ('{"files": {}}', "is not a record of a cell"),
        ('{"format": 2, "cell": "tiny", "status": "complete"}', "is no whole record"),
    ],
)
def test_a_record_that_cannot_be_read_is_told(sweep: Frozen, text: str, why: str) -> None:
    """And is none that is waited for."""
    (cell,) = sweep.cells.values()
    assert "cannot be read" not in shown(Listed(sweep.folder))
    cell.record.parent.mkdir(exist_ok=True)
    cell.record.write_text(text)
    registry, written = manifest.Registry(sweep.out), manifest.read(sweep.out, "trial")
    for node in written.nodes[:-1]:
        sweep.store.folder(node.entry).mkdir(parents=True)
        (sweep.store.folder(node.entry) / "manifest.json").write_text("{}")
    registry.submitted(written.nodes[-1].id, "7", sweep.out / "log", "trial")
    for look in (Listed(sweep.folder), Status(written, said("COMPLETED"))):
        lines = "".join(shown(look).split("\n"))
        assert f"{cell.record} {why}" in lines
        assert "0/1 cells complete" in lines


@pytest.mark.parametrize("told", [{"type": "Lost"}, {"message": "gone"}, {"shell": "s"}, {"log": "x"}])
def test_jobs_and_errors_that_lack_a_part_are_none(sweep: Frozen, told: dict[str, str]) -> None:
    layout, written = Layout(sweep.out), manifest.read(sweep.out, "trial")
    layout.jobs.mkdir()
    for node in written.nodes:
        layout.job(node.id).write_text(json.dumps(told))
        layout.error(node.id).write_text(json.dumps(told))
    assert "it was never started" in shown(Status(written, said("COMPLETED")))


def test_manifests_and_lists_that_name_what_no_file_is_called(sweep: Frozen) -> None:
    path, listed = sweep.folder.manifest, sweep.folder.cells
    content, cells = json.loads(path.read_text()), listed.read_text()
    node = content["nodes"][0]
    changes: list[dict[str, Any]] = [
        {"cells": {}},
        *({"nodes": [node | one]} for one in ({"id": "../x"}, {"entry": "x" * 300})),
    ]
    for change in changes:
        path.write_text(json.dumps(content | change))
        with pytest.raises(
            UserError, match=r"manifest\.json is truncated, or no manifest \(.*(not listed|no name of a file)\)"
        ):
            manifest.read(sweep.out, "trial")
    listed.write_text(json.dumps({"../x": next(iter(json.loads(cells).values()))}))
    with pytest.raises(UserError, match=r"cells\.json is no list of cells \('\.\./x' is no name of a file\)"):
        Listed(sweep.folder)


def test_a_sweep_whose_folder_is_gone_is_collected_in_one_line(sweep: Frozen, tmp_path: Path) -> None:
    content = json.loads(sweep.folder.manifest.read_text())
    sweep.folder.manifest.write_text(json.dumps(content | {"cwd": str(tmp_path / "moved")}))
    written = manifest.read(sweep.out, "trial")
    with pytest.raises(
        UserError, match=r"was submitted in \S+moved, where paths of its cells begin, and which cannot be entered"
    ):
        collect(written, Status(written, said("FAILED")))
