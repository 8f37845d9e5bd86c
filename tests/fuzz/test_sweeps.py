"""What lies in the folders of sweeps, jobs and the store, whoever wrote it: the commands that look after them end well, or in
one line."""

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from mutations import damaged, examples, mutated

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.layout import Layout
from qdexp.store import Store, pruning, tool
from qdexp.sweep import manifest
from qdexp.sweep.__main__ import main as sweep_command
from qdexp.sweep.freeze import read_config
from qdexp.sweep.launch import Frozen
from qdexp.sweep.status import Status

CellOf = Callable[..., Cell]
KINDS = ("cells.json", "manifest.json", "cells/*.json", "jobs/*.json", "store/*/manifest.json", "executions.jsonl")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("sweeps") / "out"


@pytest.fixture
def found(cell_of: CellOf, folder: Path) -> dict[str, Path]:
    """A file of each kind of a real sweep that was submitted, and of one that was run; made once."""
    if not folder.exists():
        cells = [cell_of(f"method={method}", f"out={folder}", "protocol.steps=2") for method in ("fp", "ptq")]
        Frozen(cells).write()
        cells[0].run()
        for node in manifest.read(folder, "trial").nodes:
            manifest.Registry(folder).submitted(node.id, "7", folder / "log", "trial")
            manifest.Registry(folder).failed(node.id, {"type": "Lost", "message": "gone", "stage": "act"})
    sweep = Layout(folder).sweep("trial").folder
    places = {kind: sweep if kind.startswith(("cells", "manifest")) else folder for kind in KINDS}
    return {kind: sorted(place.glob(kind))[0] for kind, place in places.items()}


def tried(work: Callable[[], object]) -> None:
    """The work ends well, or in one line."""
    try:
        work()
    except UserError as error:
        assert str(error)


def looked_after(out: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """By each command that changes nothing."""
    for command in (["status", "trial"], ["status"], ["logs", "ptq", "trial"], ["collect", "trial"]):
        tried(lambda command=command: sweep_command([*command, "--out", str(out)]))  # type: ignore[misc]
    for look in (tool.du, tool.verify, lambda store: tool.prune(store, yes=False)):
        tried(lambda look=look: look(Store(out)))  # type: ignore[misc]
    tried(lambda: pruning.removable(Layout(out)))
    capsys.readouterr()


@pytest.mark.parametrize("kind", KINDS)
@examples(12)
@given(data=st.data())
def test_any_file_of_a_sweep(
    found: dict[str, Path], folder: Path, kind: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    data: st.DataObject,
) -> None:  # fmt: skip
    path = found[kind]
    whole = path.read_bytes()
    changed = (
        damaged(whole) if kind.endswith("jsonl") else mutated(json.loads(whole)).map(lambda tree: json.dumps(tree).encode())
    )
    with monkeypatch.context() as patch:
        patch.setattr("qdexp.sweep.queue.Watcher.states", lambda _, jobs: dict.fromkeys(jobs, "FAILED"))
        try:
            path.write_bytes(data.draw(st.one_of(changed, damaged(whole))))
            looked_after(folder, capsys)
            if kind == "cells/*.json":
                tried(lambda: read_config(manifest.read(folder, "trial"), path.stem))
        finally:
            path.write_bytes(whole)
    assert Status(manifest.read(folder, "trial"), lambda jobs: dict.fromkeys(jobs, "FAILED")).failures()
