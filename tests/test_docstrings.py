"""Docstrings are sentences: they begin with a verb or a subject, never in the middle of a thought."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

SOURCE = Path(__file__).parents[1] / "src"
MODULES = sorted(SOURCE.rglob("*.py"))
FRAGMENT = re.compile(
    r"(Of|Likewise|The same|Those|These|What|Which|Whose|Who|How|As|From|To|In|By|For|On|At|With|Without|Within|Between|Beside"
    r"|Below|Until|Where|Also|Again|And|But|Its|Their|They|Here|So)\b"
)


def docstrings(path: Path) -> Iterator[tuple[str, str]]:
    """The docstrings of a file, and what each is of."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef) and (text := ast.get_docstring(node)):
            yield getattr(node, "name", "the module"), text


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_docstrings_begin_with_a_subject_or_a_verb(path: Path) -> None:
    assert [f"{name}: {text.splitlines()[0]}" for name, text in docstrings(path) if FRAGMENT.match(text)] == []
