"""Docstrings, those of constants too, begin with a verb or a subject, never in the middle of a thought."""

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


def docstrings(path: Path) -> Iterator[tuple[int, str]]:
    """The docstrings of a file, and their lines: texts that stand alone."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.lineno, node.value.value


@pytest.mark.parametrize("path", MODULES, ids=lambda path: path.relative_to(SOURCE).as_posix())
def test_docstrings_begin_with_a_subject_or_a_verb(path: Path) -> None:
    assert [f"{line}: {text.splitlines()[0]}" for line, text in docstrings(path) if FRAGMENT.match(text)] == []
