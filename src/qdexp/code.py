"""The code behind a result: a digest of the modules that compute it, found by following their imports.

What counts of a module is its syntax tree. What only a reader sees is not in it: comments, docstrings, annotations, layout,
the text of errors and of what is printed. Imports are read off the source, so that nothing depends on what a process happens
to have imported. Modules of qdexp and of the user are followed. Installed packages are not: of those that the user's modules
import, the versions count.
"""

import ast
import hashlib
import json
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache
from importlib import metadata
from importlib.util import find_spec, resolve_name
from pathlib import Path

from qdexp import entries
from qdexp.files import sha256
from qdexp.paths import PACKAGE

WITHOUT_EFFECT = {
    *(
        "qdexp.config",
        "qdexp.errors",
        "qdexp.files",
        "qdexp.layout",
        "qdexp.paths",
        "qdexp.progress",
        "qdexp.store",
        "qdexp.entries",
        "qdexp.meter",
        "qdexp.numbers",
    ),
    *("qdexp.stages.base", "qdexp.code", "qdexp.stages.keys"),
}
"""Modules and packages that carry options, results and messages about without changing a result (a test holds them to it)."""

_ROOT = PACKAGE.name
_INSTALLED = {"site-packages", "dist-packages"}
_LIBRARY = Path(os.__file__).parent
_UNSEEN = {"annotation", "returns", "type_comment", "type_params", "ctx", "kind"}


@dataclass(frozen=True)
class Module:
    """One source file: the digest of what counts of it, and the names it imports, most of which are no modules followed."""

    path: Path
    digest: str
    imports: tuple[str, ...]


def digest(module: str, stop: Callable[[str], bool] = lambda _: False) -> str:
    """16 hex digits for ``module`` and all that it leads to, not through modules where ``stop`` holds."""
    found: dict[str, str] = {}
    named = {module}
    for name, one in reached(module, stop).items():
        found[name] = one.digest
        package = name if one.path.name == "__init__.py" else name.rpartition(".")[0]
        found |= {f"{package}/{file.name}": entries.digest(file) for file in data(one.path.parent)}
        named |= set() if PACKAGE in one.path.parents else set(one.imports)
    found |= {
        f"{package}==": version for package in {name.partition(".")[0] for name in named} if (version := _version(package))
    }
    return hashlib.sha256(json.dumps(found, sort_keys=True).encode()).hexdigest()[:16]


def reached(module: str, stop: Callable[[str], bool] = lambda _: False) -> dict[str, Module]:
    """``module`` and those that it leads to by imports, by their names; an installed one leads nowhere."""
    found: dict[str, Module] = {}
    pending = [module]
    while pending:
        name = pending.pop()
        path = None if name in found else locate(name)
        if path is not None:
            found[name] = parsed(name, path)
            if is_installed(path):
                continue
            if PACKAGE not in path.parents and "." in name:  # to import a module is to run the packages around it
                pending.append(name.rpartition(".")[0])
            pending += [other for other in _modules(found[name].imports) if not stop(other)]
    return found


def parsed(name: str, path: Path) -> Module:
    """The module ``name`` in the file at ``path``, read once as long as the file does not change."""
    state = path.stat()
    return _parsed(name, path, state.st_mtime_ns, state.st_size)


@cache
def _parsed(name: str, path: Path, changed: int, size: int) -> Module:
    if path.suffix != ".py":
        return Module(path, sha256(path), ())
    tree = ast.parse(path.read_bytes())
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    return Module(path, hashlib.sha256(plain(tree).encode()).hexdigest(), tuple(dict.fromkeys(_names(tree, package))))


def plain(tree: ast.AST) -> str:
    """The part of a syntax tree that counts, as text; the same for every version of Python."""
    return _plain(tree)


def _plain(node: object) -> str:
    if isinstance(node, list):
        return f"[{','.join([_plain(item) for item in node if not _is_for_readers(item)])}]"
    if isinstance(node, ast.Raise):
        return f"Raise({_plain(_without_arguments(node.exc))})"
    if isinstance(node, ast.Assert):
        return f"Assert({_plain(node.test)})"
    if not isinstance(node, ast.AST):
        return repr(node)
    fields = [_plain(getattr(node, name, None)) for name in node._fields if name not in _UNSEEN]
    return f"{type(node).__name__}({','.join(fields)})"


def _is_for_readers(node: object) -> bool:
    """Docstrings, and calls of ``print``."""
    if not isinstance(node, ast.Expr):
        return False
    value = node.value
    if isinstance(value, ast.Call):
        return isinstance(value.func, ast.Name) and value.func.id == "print"
    return isinstance(value, ast.Constant) and isinstance(value.value, str)


def _without_arguments(raised: ast.expr | None) -> ast.expr | None:
    return raised.func if isinstance(raised, ast.Call) else raised


def _names(tree: ast.AST, package: str) -> Iterator[str]:
    """The imports of a file, names of modules and of objects in them; imports for type checkers alone are left out."""
    for node in _executed(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            try:
                module = resolve_name("." * node.level + (node.module or ""), package)
            except ImportError:  # relative, in a file that was imported by its own name: the attempt is somewhere caught
                continue
            yield from (f"{module}.{alias.name}" for alias in node.names)


def _executed(node: ast.AST) -> Iterator[ast.AST]:
    yield node
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.If) and isinstance(child.test, ast.Name) and child.test.id == "TYPE_CHECKING":
            for other in child.orelse:
                yield from _executed(other)
        else:
            yield from _executed(child)


def _modules(names: Sequence[str]) -> Iterator[str]:
    """The modules to be followed among what a file imports: ``a.b`` itself where it is one, else ``a``, which holds ``b``."""
    for name in names:
        if _in_library(name.partition(".")[0]):
            continue
        module = name if locate(name) is not None else name.rpartition(".")[0]
        path = locate(module) if module else None
        if path is not None and not is_installed(path) and not _without_effect(module):
            yield module


def _without_effect(module: str) -> bool:
    parts = module.split(".")
    return module == _ROOT or any(".".join(parts[:end]) in WITHOUT_EFFECT for end in range(2, len(parts) + 1))


def is_installed(path: Path) -> bool:
    """Whether it is of a package that was installed: its version stands for it."""
    return PACKAGE not in path.parents and bool(_INSTALLED & set(path.parts))


def data(folder: Path) -> list[Path]:
    """The files of a user's package that are no modules: these may read them. What qdexp's own read, its options name."""
    if PACKAGE in (folder, *folder.parents) or _INSTALLED & set(folder.parts) or not (folder / "__init__.py").exists():
        return []
    files = (file for file in sorted(folder.iterdir()) if file.suffix not in (".py", ".pyc") and not file.name.startswith("."))
    return [file for file in files if file.is_file()]


def locate(name: str) -> Path | None:
    """The file of a module; None of what is none, of namespace packages and of Python's library."""
    parts = name.split(".")
    if parts[0] == _ROOT:
        place = PACKAGE.joinpath(*parts[1:])
        return next((path for path in (place.with_suffix(".py"), place / "__init__.py") if path.is_file()), None)
    return None if _in_library(parts[0]) else _found(name)


@cache
def _in_library(package: str) -> bool:
    """Whether it is Python's own: a module of the user may be called like one of the library, and comes first then."""
    if package not in sys.stdlib_module_names:
        return False
    path = _found(package)
    return path is None or _LIBRARY in path.parents


@cache
def _version(package: str) -> str | None:
    """The version of an installed package; None for anything else, or a package without a version."""
    path = None if package == _ROOT or _in_library(package) else _found(package)
    if path is None or not is_installed(path):
        return None
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:  # it is published under another name
        return ", ".join(metadata.version(name) for name in metadata.packages_distributions().get(package, [])) or None


def _found(name: str) -> Path | None:
    parts = name.split(".")
    for end in range(1, len(parts) + 1):  # the package first: to look for a module is to import the package around it
        try:
            spec = find_spec(".".join(parts[:end]))
        except (ImportError, ValueError):
            return None
        if spec is None:
            return None
        if end < len(parts) and spec.origin is not None and is_installed(Path(spec.origin)):
            return None  # what is inside of an installed package is not looked at: finding it would import it
    return Path(spec.origin) if spec is not None and spec.origin is not None and spec.has_location else None
