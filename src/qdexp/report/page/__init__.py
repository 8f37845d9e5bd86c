"""One page of a study that opens from the disk: one HTML file, and of a large study the details of its cells beside it."""

from importlib.resources import files as resources
from pathlib import Path

from jinja2 import Environment
from markupsafe import Markup

from qdexp import files
from qdexp.report.page.content import Content
from qdexp.report.page.parts import Parts, as_json

SCRIPTS = ("charts.js", "state.js", "details.js", "overview.js", "figures.js", "cell.js", "compare.js", "main.js")
"""The scripts in this order, as one: a file uses what stands before it."""


def write(content: Content, path: Path) -> None:
    """Fills the template and writes the page whole, once what it reads is there; of large studies in ``NAME-details/``."""
    resource = resources(__name__)

    def text(name: str) -> str:
        return (resource / name).read_text()

    parts = Parts(path.with_name(f"{path.stem}-details"), content.details)
    cells = content.study["cells"]
    study = content.study | {"parts": parts.beside, "cells": cells | {"part": [parts.of[name] for name in cells["id"]]}}
    page = (
        Environment(autoescape=True)
        .from_string(text("page.html"))
        .render(
            title=study["title"],
            style=Markup(text("page.css")),
            script=Markup("".join(map(text, SCRIPTS))),
            data=as_json(study),
            parts=parts.inside,
        )
    )
    files.write_text(path, page)
    parts.remove_others()
