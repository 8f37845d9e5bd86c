"""The code that the jobs of a sweep run: a copy of qdexp and of the user's own modules, made when the sweep is submitted.

DIGEST/                     goes first on the path of the jobs, so that what is edited or checked out later changes nothing
    qdexp/                  the package as it was
    mine.py, mypackage/     the user's modules that the cells name, and what these import
    snapshot.json           the commit of the checkout, which this copy no longer belongs to
"""

import hashlib
import json
import os
import shlex
import shutil
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from uuid import uuid4

from qdexp import code, environ, files, provenance
from qdexp.cell import Cell
from qdexp.paths import PACKAGE
from qdexp.stages.keys import modules_of, targets

LARGE = 10**7
"""Bytes from which a file in a package of the user is linked instead of copied: it is data."""


def take(folder: Path, cells: Iterable[Cell]) -> Path:
    """Copies the code behind the cells into a folder of its own below ``folder``, unless it is there; returns that folder."""
    sources = _sources(list(cells))
    digests = {name: str(path) if _is_large(path) else files.sha256(path) for name, path in sorted(sources.items())}
    digests[provenance.SNAPSHOT.name] = json.dumps(provenance.commit())
    target = folder / hashlib.sha256(json.dumps(digests).encode()).hexdigest()[:16]
    if target.exists() and not _holds(target, sources, digests):
        print(f"{target} is no longer what was copied: it is copied again", flush=True)
        target.rename(target.with_name(f"{files.PART}{target.name}-{uuid4().hex[:12]}"))
    if not target.exists():
        part = target.with_name(f"{files.PART}{target.name}-{uuid4().hex[:12]}")
        try:
            for name, path in sources.items():
                (part / name).parent.mkdir(parents=True, exist_ok=True)
                if _is_large(path):
                    (part / name).symlink_to(path.resolve())
                else:
                    shutil.copyfile(path, part / name)
            (part / provenance.SNAPSHOT.name).write_text(json.dumps(provenance.commit()))
            try:
                part.rename(target)
            except OSError:
                if not target.exists():
                    raise
                # another shell was first with the same
        finally:
            shutil.rmtree(part, ignore_errors=True)
    return target.resolve()


def _holds(copy: Path, sources: Mapping[str, Path], digests: Mapping[str, str]) -> bool:
    """Whether no file of an earlier copy is missing, or has changed since."""
    try:
        said = (copy / provenance.SNAPSHOT.name).read_text() == digests[provenance.SNAPSHOT.name]
        return said and all(files.sha256(copy / name) == digests[name] for name, path in sources.items() if not _is_large(path))
    except OSError:
        return False


def _is_large(path: Path) -> bool:
    return PACKAGE not in path.parents and path.stat().st_size > LARGE


def _sources(cells: Sequence[Cell]) -> dict[str, Path]:
    """The files to copy, by their places in the copy."""
    outputs = [cell.out for cell in cells]
    found = {str(path.relative_to(PACKAGE.parent)): path for path in _all_files(PACKAGE, outputs)}
    named = {name for cell in cells for stage in cell.stages.values() for name in targets(stage)}
    for module in dict.fromkeys(module for name in sorted(named) for module in modules_of(name)):
        for reached, one in code.reached(module).items():
            if not code.is_installed(one.path) and PACKAGE not in one.path.parents:
                found |= _own(reached, one.path, outputs)
    return found


def _own(module: str, path: Path, outputs: Sequence[Path]) -> dict[str, Path]:
    """A module's file; of one in a package, the whole outermost package: what is imported late must be there too."""
    depth = module.count(".") + (path.name == "__init__.py")
    if depth == 0:
        return {path.name: path}
    top = path.parents[depth - 1]
    return {str(file.relative_to(top.parent)): file for file in _all_files(top, outputs)}


def _all_files(top: Path, outputs: Sequence[Path]) -> Iterator[Path]:
    """The files of a package, in folders that are linked into it too, except output folders: they hold earlier copies."""
    seen = {path.resolve() for path in (top, *outputs)}
    for place, folders, names in os.walk(top, followlinks=True):
        inner = {name: Path(place, name).resolve() for name in sorted(folders) if _counts(name)}
        folders[:] = [name for name, folder in inner.items() if folder not in seen]
        seen.update(inner.values())
        yield from (path for path in (Path(place, name) for name in sorted(names) if _counts(name)) if path.is_file())


def _counts(name: str) -> bool:
    return not name.startswith(".") and name != "__pycache__"


def search_path(copy: Path) -> str:
    """PYTHONPATH of a job: the copy, then what the shell has, then its folder, where Python looks by itself."""
    return os.pathsep.join([str(copy), *filter(None, [os.environ.get("PYTHONPATH")]), os.getcwd()])


def setup(copy: Path) -> list[str]:
    """Lines of a shell after which Python runs the copy; what lines before have put on the path stays there."""
    before = f'{shlex.quote(search_path(copy))}"${{PYTHONPATH:+:$PYTHONPATH}}"'
    return [f"export PYTHONPATH={before}", "export PYTHONSAFEPATH=1"]


def running(copy: Path) -> AbstractContextManager[None]:
    """Processes that are started within run the copy."""
    return environ.variables({"PYTHONPATH": search_path(copy), "PYTHONSAFEPATH": "1"})
