"""The notebook with stored outputs runs from below a folder that holds those of the ablation, and was executed as it stands."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "paper_table.ipynb"


def code_cells() -> list[dict[str, Any]]:
    return [cell for cell in json.loads(NOTEBOOK.read_text())["cells"] if cell["cell_type"] == "code"]


def test_every_cell_was_executed_in_order_without_an_error() -> None:
    assert [cell["execution_count"] for cell in code_cells()] == list(range(1, len(code_cells()) + 1))
    assert not [output for cell in code_cells() for output in cell["outputs"] if output["output_type"] == "error"]


@pytest.mark.slow
def test_the_notebook_runs(
    qdexp: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    code, _, err = qdexp("-m", "sweep=ladder", "inspection.rows=4", f"out={tmp_path / 'outputs'}")
    assert (code, err) == (0, "")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    names: dict[str, Any] = {}
    for cell in code_cells():
        lines = [
            line for line in "".join(cell["source"]).splitlines() if not line.startswith(("%", "from IPython", "Markdown("))
        ]
        exec("\n".join(lines), names)
    assert names["show"]("curves") is not None
    printed = capsys.readouterr().out
    assert "fid qdiffusion - reconstruction: " in printed
    assert r"\begin{tabular}" in printed
