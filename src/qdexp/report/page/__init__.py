"""One self-contained page of a study: records, curves, samples and charts in a single HTML file that opens from the disk."""

from importlib.resources import files as resources
from pathlib import Path
from typing import Any

from jinja2 import Environment
from jinja2.utils import htmlsafe_json_dumps
from markupsafe import Markup

from qdexp import files

SCRIPTS = ("charts.js", "state.js", "overview.js", "figures.js", "cell.js", "compare.js", "main.js")
"""The scripts in this order, as one: a file uses what stands before it."""


def write(data: dict[str, Any], path: Path) -> None:
    """Fills the template with ``data`` and writes it whole."""
    parts = resources(__name__)

    def text(name: str) -> str:
        return (parts / name).read_text()

    page = Environment(autoescape=True).from_string(text("page.html"))
    plain = htmlsafe_json_dumps(data, separators=(",", ":"), allow_nan=False)
    script = Markup("".join(map(text, SCRIPTS)))
    files.write_text(path, page.render(title=data["title"], style=Markup(text("page.css")), script=script, data=plain))
