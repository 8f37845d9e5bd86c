"""The source of code that is the user's own: of a file, and of all their files that it imports.

Imports are read off the source, so that nothing depends on what a process happens to have imported. Installed packages and
Python's library do not count.
"""

import ast
import sys
from collections.abc import Iterator
from importlib.util import find_spec, resolve_name
from pathlib import Path

from qdexp.files import sha256

_INSTALLED = {"site-packages", "dist-packages"}
_OTHERS = {*sys.stdlib_module_names, "qdexp"}


def imported(path: Path, package: str) -> dict[str, str]:
    """SHA-256 of every file of the user's that the one at ``path``, a module in ``package``, imports, directly or through
    others; by the modules' names."""
    found: dict[str, str] = {}
    pending = [(path, package)]
    while pending:
        for name in _names(*pending.pop()):
            own = None if name in found else _own(name)
            if own is not None and own != path:
                found[name] = sha256(own)
                pending.append((own, name if own.name == "__init__.py" else name.rpartition(".")[0]))
    return found


def _names(path: Path, package: str) -> Iterator[str]:
    """What may be modules among the names that a file imports."""
    if _INSTALLED & set(path.parts):
        return
    for node in ast.walk(ast.parse(path.read_bytes())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                module = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # relative, in a file that was imported by its own name: the attempt is somewhere caught
                continue
            yield from (module, *(f"{module}.{alias.name}" for alias in node.names))


def _own(name: str) -> Path | None:
    """The file of a module of the user's; None of others, and of what is no module."""
    parts = name.split(".")
    if parts[0] in _OTHERS:
        return None
    for end in range(1, len(parts) + 1):  # the package first: to look for a module is to import the package around it
        try:
            spec = find_spec(".".join(parts[:end]))
        except (ImportError, ValueError):
            return None
        places = [] if spec is None else [spec.origin] if spec.has_location else spec.submodule_search_locations or []
        if not any(place and not _INSTALLED & set(Path(place).parts) for place in places):
            return None
    return Path(str(spec.origin)) if spec is not None and str(spec.origin).endswith(".py") else None
