"""Digests of the code behind every stage, so that no result is taken from the store that today's code would not give.

    python tests/stages/fingerprints.py     accepts the code as it is now

What only a reader sees does not count: comments, docstrings, annotations, layout.
"""

import ast
import hashlib
import json
import pkgutil
from collections.abc import Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import qdexp.stages
from qdexp.stages.base import Stage

ACCEPTED = Path(__file__).with_suffix(".json")
SOURCE = Path(qdexp.__file__).parents[1]
UNSEEN = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind"}


def stages() -> list[type[Stage]]:
    """All stages there are."""
    for module in pkgutil.iter_modules(qdexp.stages.__path__, "qdexp.stages."):
        import_module(module.name)
    return sorted((stage for stage in Stage.__subclasses__() if stage.__module__.startswith("qdexp.")), key=lambda s: s.name)


def fingerprint(stage: type[Stage]) -> dict[str, Any]:
    """The stage's version, and a digest of the code that it says makes its result."""
    code = {str(path.relative_to(SOURCE)): plain(path.read_text()) for name in stage.sources for path in modules(name)}
    digest = hashlib.sha256(json.dumps(code, sort_keys=True).encode()).hexdigest()
    return {"version": stage.version, "code": digest}


def modules(name: str) -> Iterator[Path]:
    """The file of a module, or all files of a package."""
    path = SOURCE / name.replace(".", "/")
    yield from sorted(path.rglob("*.py")) if path.is_dir() else [path.with_suffix(".py")]


def plain(source: str) -> Any:
    """The syntax tree as lists and dicts, without what only a reader sees; the same for every Python version."""
    return _plain(ast.parse(source))


def _plain(node: Any) -> Any:
    if isinstance(node, list):
        return [_plain(item) for item in node if not _is_docstring(item)]
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = {name: _plain(value) for name, value in ast.iter_fields(node) if name not in UNSEEN}
    return {type(node).__name__: fields}


def _is_docstring(node: Any) -> bool:
    return isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str)


if __name__ == "__main__":
    ACCEPTED.write_text(json.dumps({stage.name: fingerprint(stage) for stage in stages()}, indent=1) + "\n")
    print(f"{ACCEPTED} holds the code of {len(stages())} stages as it is now")
