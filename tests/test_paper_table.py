"""The notebook with stored outputs runs from below a folder that holds the outputs of the ablation."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

NOTEBOOK = Path(__file__).parents[1] / "docs" / "notebooks" / "paper_table.ipynb"


@pytest.mark.slow
def test_the_notebook_runs(
    qdexp: Callable[..., tuple[int, str, str]],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """Takes 25 s of CPU time."""
    code, _, err = qdexp("-m", "sweep=ladder", "inspection.rows=4", f"out={tmp_path / 'outputs'}")
    assert (code, err) == (0, "")
    (tmp_path / "notebooks").mkdir()
    monkeypatch.chdir(tmp_path / "notebooks")
    names: dict[str, Any] = {}
    for cell in json.loads(NOTEBOOK.read_text())["cells"]:
        if cell["cell_type"] == "code":
            lines = "".join(cell["source"]).splitlines()
            exec("\n".join(line for line in lines if not line.startswith(("%", "from IPython", "Markdown("))), names)
    assert names["show"]("curves") is not None
    printed = capsys.readouterr().out
    assert "fid qdiffusion - reconstruction: " in printed
    assert r"\begin{tabular}" in printed
