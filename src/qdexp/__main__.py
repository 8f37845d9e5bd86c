"""``python -m qdexp``: one cell, or with ``-m`` a sweep of cells."""

import _thread
import contextlib
import os
import sys
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager
from importlib.metadata import version
from pathlib import Path

import hydra
from hydra.core.hydra_config import HydraConfig
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from qdexp import overrides, permanent
from qdexp.config import Config
from qdexp.errors import UserError, one_line
from qdexp.paths import PACKAGE, conf_folder


@hydra.main(version_base="1.3", config_path=str(conf_folder()), config_name="config")
def app(cfg: DictConfig) -> str:
    if HydraConfig.get().mode == RunMode.RUN:
        with _one_line():
            check_early(cfg)
    with permanent.imports():
        from qdexp.sweep.results import run  # torch is loaded here, not for --help

    if HydraConfig.get().mode == RunMode.MULTIRUN:
        return run(cfg)  # what it raises is Hydra's: the other cells go on
    with _one_line():  # not by way of Hydra, which would print the overrides before it
        return run(cfg)


def check_early(cfg: DictConfig) -> None:
    """Raises UserError for what can be known before all is loaded that computes: that takes seconds."""
    config = Config.early(cfg)
    if config is not None and config.device == "cuda":
        with permanent.imports():
            from qdexp.device import resolve  # torch alone

        resolve("cuda")


def _one_line() -> AbstractContextManager[None]:
    return one_line(HydraException, OmegaConfBaseException)


@contextlib.contextmanager
def _hydras_own(arguments: Sequence[str]) -> Iterator[None]:
    """Raises UserError for what Hydra has against options of its own: it does not check all of them."""
    try:
        yield
    except (AssertionError, AttributeError, KeyError, TypeError, ValueError) as error:
        named = [one for one in arguments if one.lstrip("+~").startswith("hydra")]
        given = [one for one in named if not one.lstrip("+~").startswith("hydra.searchpath")]  # which is checked before
        places = [Path(frame.filename) for frame in traceback.extract_tb(error.__traceback__)]
        theirs, ours = Path(hydra.__file__).parent, (PACKAGE, PACKAGE.parent / "hydra_plugins")
        last = next(place for place in reversed(places) if {theirs, *ours} & set(place.parents))
        if not given or theirs not in last.parents:
            raise
        why = f"{type(error).__name__} {error}".strip()
        raise UserError(f"{' '.join(given)}: is nothing that Hydra can read ({why})") from error


def send_again(dropped: "sys.UnraisableHookArgs") -> None:
    """Python drops a Ctrl-C that it happens to raise in a finalizer, such as that of Lightning's profiler, which the garbage
    collector runs at any time: it is sent once more, a moment later."""
    if dropped.exc_type is not KeyboardInterrupt:
        sys.__unraisablehook__(dropped)
        return

    def later() -> None:
        time.sleep(0.5)  # here it would be dropped too
        _thread.interrupt_main()

    _thread.start_new_thread(later, ())  # threading would wait for it, and might be there still


def main() -> None:
    # Hydra shall pass errors on: what a user can fix is printed below in one line
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    if "--version" in sys.argv[1:]:  # Hydra's own option tells of Hydra
        print(f"qdexp {version('qdexp')}")
        return
    try:
        with _one_line():
            overrides.check(sys.argv[1:])
            sys.argv[1:] = overrides.arranged(sys.argv[1:])
            with _hydras_own(sys.argv[1:]):
                app()
    except KeyboardInterrupt:
        sys.exit("qdexp: stopped; finished stages are kept, the same command goes on")


if __name__ == "__main__":
    sys.unraisablehook = send_again
    main()
