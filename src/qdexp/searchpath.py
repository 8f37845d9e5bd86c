"""The folders of configs that Hydra looks into: ours, and the user's own, as a command names them."""

from collections.abc import Iterator, Sequence
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path, PurePosixPath

from hydra.core.override_parser.types import Override
from omegaconf import OmegaConf

from qdexp.errors import UserError
from qdexp.paths import conf_folder

SEARCHPATH = "hydra.searchpath"


def axes() -> set[str]:
    """The groups of configs, each an axis of sweeps."""
    return {path.name for path in conf_folder().iterdir() if path.is_dir()}


def choices(axis: str, own: Sequence[Traversable]) -> list[str]:
    """The choices along an axis, in our folder and the user's ``own``."""
    groups = [folder.joinpath(axis) for folder in (conf_folder(), *own)]
    return sorted({name for group in groups if group.is_dir() for name in _names(group, PurePosixPath())})


def _names(folder: Traversable, below: PurePosixPath) -> Iterator[str]:
    for one in folder.iterdir():
        if one.is_dir():
            yield from _names(one, below / one.name)
        elif one.name.endswith(".yaml"):
            yield str(below / one.name.removesuffix(".yaml"))


def own_folders(arguments: Sequence[str], overrides: Sequence[Override]) -> list[Traversable]:
    """The user's folders of configs that a command's ``arguments`` name, whose ``overrides`` are parsed.

    Raises:
        UserError: There is no such folder or package, or one holds a file that is called like one of ours.
    """
    named = [(f"{flag} {folder}", folder) for flag, folder in pairwise(arguments) if flag in ("--config-dir", "-cd")]
    named += [(one, one.partition("=")[2]) for one in arguments if one.startswith("--config-dir=")]
    for override in overrides:
        if override.key_or_group == SEARCHPATH and not override.is_delete():
            given = override.value()
            for place in OmegaConf.create(given if isinstance(given, list) else [given]):  # ${oc.env:...} is looked up
                named.append((f"{SEARCHPATH}: {place}", str(place)))
    found = []
    for option, place in named:
        scheme, _, name = place.rpartition("://")
        if scheme not in ("", "file", "pkg"):
            continue  # of a plugin's
        folder = _package(name) if scheme == "pkg" else Path(name)
        if folder is None or not folder.is_dir():
            raise UserError(f"{option}: no such {'package' if scheme == 'pkg' else 'folder'}; give file:///PATH of a folder of "
                            f"configs (model/NAME.yaml, ...), or pkg://PACKAGE")  # fmt: skip
        _refuse_hidden(folder)
        found.append(folder)
    return found


def _package(name: str) -> Traversable | None:
    """The folder ``a.b/c`` or ``a.b.c`` of a package; None where there is none."""
    try:
        return files(name.replace("/", "."))
    except (ImportError, TypeError, ValueError):
        return None


def _refuse_hidden(folder: Traversable) -> None:
    """UserError where a file would be ignored, since one of ours has its name and comes first. An equal copy may stay."""
    ours = conf_folder()
    hidden = [(folder.joinpath(str(own.relative_to(ours))), own) for own in sorted(ours.rglob("*.yaml"))]
    hidden = [(file, own) for file, own in hidden if file.is_file() and file.read_bytes() != own.read_bytes()]
    if hidden:
        (file, own), others = hidden[0], len(hidden) - 1
        more = f"; so would {others} more" if others else ""
        raise UserError(f"{SEARCHPATH}: {file} would be ignored, since {own} has its name{more}; rename it")
