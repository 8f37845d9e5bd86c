"""The site: the pages of this folder, those that are made from the code, and the interface from Python. ``make docs``."""

import sys
from importlib.metadata import version as version_of
from pathlib import Path

from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))

import generated_pages as pages  # noqa: E402

project = html_title = "qdexp"
project_copyright = "the developers of qdexp, MIT licence"
version = release = version_of("qdexp")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build"]
myst_heading_anchors = 4
nb_execution_mode = "off"
html_theme = "furo"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False


def setup(app: Sphinx) -> None:
    pages.write_all(HERE / "generated")
    app.connect("source-read", read)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """The front page is the README; links are as the repository has them."""
    if page == "index":
        source[0] = pages.linked((pages.TOP / "README.md").read_text(), pages.TOP / "README.md") + source[0]
    elif not page.startswith("generated/"):
        source[0] = pages.linked(source[0], HERE / f"{page}.md")
