"""The site: the pages of this folder, those that are made from the code, and the interface from Python. ``make docs``."""

import os
import sys
from functools import partial
from importlib.metadata import version as version_of
from pathlib import Path

from jupyter_cache.executors.utils import single_nb_execution
from myst_nb.core.execute import direct
from sphinx.application import Sphinx

HERE = Path(__file__).parent
sys.path.insert(0, str(HERE))
# for the commands of notebooks: they find this Python, and print text without escapes
os.environ |= {"PATH": os.pathsep.join([str(Path(sys.executable).parent), os.environ.get("PATH", "")]), "TTY_COMPATIBLE": "0"}

import generated_pages as pages  # noqa: E402
import mathml  # noqa: E402

direct.single_nb_execution = partial(single_nb_execution, coalesce_streams=True)  # what a command prints is one text

project = html_title = "qdexp"
project_copyright = "the developers of qdexp, MIT licence"
version = release = version_of("qdexp")

extensions = ["myst_nb", "sphinx.ext.autodoc", "sphinx.ext.napoleon", "sphinx.ext.viewcode"]
exclude_patterns = ["_build", "jupyter_execute"]
myst_enable_extensions = ["dollarmath"]
myst_heading_anchors = 4
nb_execution_mode = "auto"  # text notebooks, which hold no outputs; the others have those of the run that made them
nb_execution_in_temp = True
nb_execution_timeout = 600
nb_execution_raise_on_error = True
html_theme = "furo"
html_static_path = ["static"]
html_css_files = ["wide.css"]
html_math_renderer = "mathml"
autodoc_typehints = "description"
autodoc_member_order = "bysource"
autodoc_inherit_docstrings = False
napoleon_numpy_docstring = False
linkcheck_timeout = 20
linkcheck_anchors = False

FOLDERS = ("methods", "notebooks")
"""The folders of pages, each below the page of its name, which links them."""


def setup(app: Sphinx) -> None:
    pages.write_all(HERE / "generated")
    mathml.register(app)
    app.connect("source-read", read)


def read(app: Sphinx, page: str, source: list[str]) -> None:
    """The front page is the README; links are as the repository has them."""
    if page == "index":
        source[0] = pages.linked((pages.TOP / "README.md").read_text(), pages.TOP / "README.md") + source[0]
    elif not page.startswith("generated/") and (HERE / f"{page}.md").exists():
        source[0] = pages.linked(source[0], HERE / f"{page}.md")
    source[0] = source[0].replace(" ± ", "\N{NO-BREAK SPACE}±\N{NO-BREAK SPACE}")  # a table breaks no line within a number
    if page in FOLDERS:
        source[0] += pages.contents(source[0], page)
