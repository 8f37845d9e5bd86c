"""Notebooks are committed as one run from top to bottom has left them, or without any output."""

import json
import subprocess
from pathlib import Path
from typing import Any

import pytest

TOP = Path(__file__).parents[1]
NOTEBOOKS = subprocess.run(
    ["git", "ls-files", "*.ipynb"], cwd=TOP, capture_output=True, text=True, check=True
).stdout.splitlines()


def faults(notebook: Any) -> list[str]:
    """What a run from top to bottom would not have left."""
    cells = [cell for cell in notebook["cells"] if cell["cell_type"] == "code" and "".join(cell["source"]).strip()]
    counts = [cell["execution_count"] for cell in cells]
    found = [f"cell {number}: ends in {output['ename']}" for number, cell in enumerate(cells, start=1)
             for output in cell["outputs"] if output["output_type"] == "error"]  # fmt: skip
    if any(counts) and counts != list(range(1, len(cells) + 1)):
        found.append(f"executed as {counts}: restart the kernel and run all cells")
    if not any(counts) and any(cell["outputs"] for cell in cells):
        found.append("has outputs of cells that were not executed")
    return found


@pytest.mark.parametrize("path", NOTEBOOKS)
def test_a_committed_notebook_is_one_whole_run_or_none(path: str) -> None:
    assert faults(json.loads((TOP / path).read_text())) == []


@pytest.mark.parametrize(
    ("counts", "output", "fault"),
    [
        ([1, 2], "stream", None),
        ([None, None], None, None),
        ([1, 3], "stream", "restart the kernel"),
        ([2, 1], None, "restart the kernel"),
        ([1, None], None, "restart the kernel"),
        ([None, None], "stream", "not executed"),
        ([1, 2], "error", "ends in KeyError"),
    ],
)
def test_what_is_a_fault(counts: list[int | None], output: str | None, fault: str | None) -> None:
    outputs = [{"output_type": output, "ename": "KeyError"}] if output else []
    cells = [{"cell_type": "code", "source": ["x"], "outputs": outputs, "execution_count": count} for count in counts]
    found = faults({"cells": [{"cell_type": "markdown", "source": ["# title"]}, *cells]})
    assert bool(found) == bool(fault) and (fault or "") in " ".join(found)
