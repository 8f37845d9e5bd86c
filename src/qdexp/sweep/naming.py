"""The names of sweeps that nobody has named: the time at which each began, and its own alone."""

import contextlib
from collections.abc import Iterator
from itertools import count
from pathlib import Path

from omegaconf import DictConfig, OmegaConf

from qdexp import files
from qdexp.layout import Layout


@contextlib.contextmanager
def named(config: DictConfig) -> Iterator[str]:
    """The name of the sweep of a composed ``config`` while it is checked and runs; a sweep that is named by the time gets a
    name that no other has: one that begins in the same second is NAME_2.

    Nothing is left of one that has listed no cells. Raises UserError where ``out`` cannot be written to.
    """
    name = str(config.sweep)
    if not OmegaConf.is_interpolation(config, "sweep"):
        yield name
        return
    layout = Layout(Path(config.out))
    files.require_writable(layout.out, f"out={layout.out}")
    folder = next(filter(_claimed, (layout.sweep(f"{name}_{turn}" if turn > 1 else name).folder for turn in count(1))))
    try:
        yield folder.name
    finally:
        with contextlib.suppress(OSError):  # it holds something
            folder.rmdir()
            layout.sweeps.rmdir()


def _claimed(folder: Path) -> bool:
    """Whether the folder is this process's, which has made it: of those that try at once one succeeds, on any file system."""
    try:
        folder.mkdir(parents=True)
    except FileExistsError:
        return False
    return True
