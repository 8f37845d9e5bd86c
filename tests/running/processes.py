"""Processes that begin where one has loaded all that qdexp needs, which takes a process of its own six seconds of CPU time.

They share nothing else: each runs a module or a file as ``python`` does, in a folder and an environment of its own. Where its
``PYTHONPATH`` leads to another copy of qdexp, that is loaded: what is there already are the packages that qdexp needs.
"""

import multiprocessing
import os
import runpy
import shlex
import signal
import sys
from collections.abc import Mapping, Sequence
from importlib.machinery import PathFinder
from pathlib import Path
from subprocess import CompletedProcess
from tempfile import TemporaryDirectory
from typing import Any

import qdexp

PROCESSES = multiprocessing.get_context("forkserver")
# what is imported late is named too: Lightning by the walk, the tables by sweeps
PROCESSES.set_forkserver_preload(["qdexp.sweep.results", "qdexp.sweep.worker", "qdexp.recon.walk", "qdexp.report.tables"])

OURS = ("qdexp", "hydra_plugins", "torch_fidelity")
"""Our packages, and one that keeps what they have registered."""


class Python:
    """``python ARGUMENTS`` at work: ``-m MODULE ...`` or ``FILE ...``; what it prints lies in files until it is asked for."""

    def __init__(self, arguments: Sequence[str], folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        self._told = TemporaryDirectory()
        told = [str(Path(self._told.name) / name) for name in ("out", "err")]
        one_thread = {**environment, "OMP_NUM_THREADS": "1"}
        self.process: Any = PROCESSES.Process(target=_run, args=(list(arguments), folder, one_thread, told))
        self.process.start()

    def poll(self) -> int | None:
        """The exit code; None while it runs."""
        code: int | None = self.process.exitcode
        return code

    def send_signal(self, number: signal.Signals) -> None:
        os.kill(self.process.pid, number)

    def wait(self, timeout: float = 300) -> CompletedProcess[str]:
        """Exit code and what was printed, once it has ended."""
        self.process.join(timeout)
        out, err = (Path(self._told.name, name).read_text() for name in ("out", "err"))
        assert self.process.exitcode is not None, err
        return CompletedProcess([], self.process.exitcode, out, err)


def script(text: str, folder: Path, settings: Mapping[str, str] = {}) -> None:
    """Runs a block of the documentation: lines of ``export NAME=VALUE`` and ``python ...``."""
    environment = {**os.environ, **settings}
    for line in text.replace("\\\n", " ").splitlines():
        match shlex.split(line):
            case []:
                pass
            case ["export", setting]:
                name, _, value = setting.partition("=")
                environment[name] = value
            case ["python", *arguments]:
                done = Python(arguments, folder, environment).wait()
                assert done.returncode == 0, done.stderr
            case _:
                raise AssertionError(f"{line}: is no command that is known here")


def _run(arguments: list[str], folder: Path, environment: dict[str, str], told: list[str]) -> None:
    import torch

    torch.set_num_threads(1)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for stream, path in zip((sys.stdout, sys.stderr), told, strict=True):
        os.dup2(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC), stream.fileno())
    module = arguments[0] == "-m"
    name, *options = arguments[1:] if module else arguments
    first = folder if module else (folder / name).parent
    sys.path[:0] = [str(first), *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv = [name, *options]
    found = PathFinder.find_spec("qdexp")
    if found is None or found.origin != qdexp.__file__:
        for loaded in [one for one in sys.modules if one.partition(".")[0] in OURS]:
            del sys.modules[loaded]
    if module:
        runpy.run_module(name, run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(name, run_name="__main__")
