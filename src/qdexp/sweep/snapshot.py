"""The code that the jobs of a sweep run: a copy of qdexp and of the user's own modules, made when the sweep is submitted.

sweeps/NAME/code/DIGEST/    goes first on the path of the jobs, so that what is edited or checked out later changes nothing
    qdexp/                  the package as it was
    mine.py, mypackage/     the user's modules that the cells name, and what these import
    snapshot.json           the commit of the checkout, which this copy no longer belongs to
"""

import contextlib
import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator
from pathlib import Path
from uuid import uuid4

from qdexp import files, provenance
from qdexp.cell import Cell
from qdexp.paths import PACKAGE
from qdexp.stages import code
from qdexp.stages.keys import modules_of, targets

CODE = "code"


def take(folder: Path, cells: Iterable[Cell]) -> Path:
    """Copies the code behind the cells into a folder of its own below ``folder``, unless it is there; returns that folder."""
    sources = _sources(cells)
    digests = {name: files.sha256(path) for name, path in sorted(sources.items())}
    digests[provenance.SNAPSHOT.name] = json.dumps(provenance.commit())
    target = folder / CODE / hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
    if not target.exists():
        part = target.with_name(f"{files.PART}{target.name}-{uuid4().hex[:12]}")
        try:
            for name, path in sources.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(path, part / name)
            (part / provenance.SNAPSHOT.name).write_text(json.dumps(provenance.commit()))
            with contextlib.suppress(FileExistsError):  # another shell was first with the same
                part.rename(target)
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target.resolve()


def _sources(cells: Iterable[Cell]) -> dict[str, Path]:
    """The files to copy, by their places in the copy."""
    found = {str(path.relative_to(PACKAGE.parent)): path for path in _all_files(PACKAGE)}
    named = {name for cell in cells for stage in cell.stages.values() for name in targets(stage)}
    for start in dict.fromkeys(module for name in sorted(named) for module in modules_of(name)):
        for module, one in code.reached(start).items():
            if not code.is_installed(one.path) and PACKAGE not in one.path.parents:
                found |= _own(module, one.path)
    return found


def _own(module: str, path: Path) -> dict[str, Path]:
    """A module's file; of one in a package, the whole outermost package: what is imported late must be there too."""
    depth = module.count(".") + (path.name == "__init__.py")
    if depth == 0:
        return {path.name: path}
    top = path.parents[depth - 1]
    return {str(file.relative_to(top.parent)): file for file in _all_files(top)}


def _all_files(folder: Path) -> Iterator[Path]:
    for path in sorted(folder.rglob("*")):
        hidden = any(part.startswith(".") or part == "__pycache__" for part in path.relative_to(folder).parts)
        if path.is_file() and not hidden:
            yield path


def search_path(copy: Path) -> str:
    """PYTHONPATH of a job: the copy, then what the shell has, then its folder, where Python looks by itself."""
    return os.pathsep.join([str(copy), *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()])


def setup(copy: Path) -> list[str]:
    """Lines of a shell after which Python runs the copy."""
    return [f"export PYTHONPATH={shlex.quote(search_path(copy))}", "export PYTHONSAFEPATH=1"]


@contextlib.contextmanager
def running(copy: Path) -> Iterator[None]:
    """Processes that are started within run the copy."""
    ours = {"PYTHONPATH": search_path(copy), "PYTHONSAFEPATH": "1"}
    before = {name: os.environ.get(name) for name in ours}
    os.environ.update(ours)
    try:
        yield
    finally:
        for name, value in before.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
