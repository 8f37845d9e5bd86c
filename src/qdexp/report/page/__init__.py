"""One self-contained page of a study: records, curves, samples and charts in a single HTML file that opens from the disk."""

import json
from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from qdexp import files

SCRIPTS = ("charts.js", "state.js", "overview.js", "figures.js", "cell.js", "compare.js", "main.js")
"""In this order, one script: what is on top of a file uses what stands before it."""


def write(data: dict[str, Any], path: Path) -> None:
    """Fills the template with ``data`` and writes it whole."""
    parts = resources(__name__)

    def text(name: str) -> str:
        return (parts / name).read_text()

    # inside a script element only "</" could end it; as \u003c it is the same JSON
    plain = json.dumps(data, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    filled = {
        "title": f"{data['title']} - qdexp".replace("&", "&amp;").replace("<", "&lt;"),
        "style": text("page.css"),
        "script": "".join(map(text, SCRIPTS)),
        "data": plain,
    }
    page = text("page.html")
    for name, content in filled.items():
        before, _, after = page.partition(f"@@{name}@@")
        page = before + content + after
    files.write_text(path, page)
