"""Work in a process of its own, which starts CUDA anew, may die or be stopped when time is up, and leaves no memory behind."""

import contextlib
import multiprocessing
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from multiprocessing.connection import Connection
from types import TracebackType
from typing import Any

PROCESSES = multiprocessing.get_context("forkserver")  # a fork of a process that has looked for a GPU cannot use one
PROCESSES.set_forkserver_preload(["qdexp.sweep.results", "qdexp.recon.walk"])  # loaded once, which takes seconds, not for each
ROW, ERROR, END = "row", "error", "end"
LINES = 30
"""Of a traceback, at most."""

Work = Callable[..., Iterable[Any]]


class OutOfTimeError(Exception):
    """No time is left."""


class DiedError(Exception):
    """The process ended without a word. ``code``: its exit code, negative where a signal ended it."""

    def __init__(self, code: int | None) -> None:
        self.code = code
        name = signal.Signals(-code).name if code is not None and code < 0 else f"exit code {code}"
        super().__init__(f"the process died: {name}")


class FailedError(Exception):
    """The work raised an exception, whose traceback this is."""


class Apart:
    """``work(*arguments)`` in a process of its own, begun at once; iterate over what it yields.

    As a context it ends the process when it is left.

    Raises (the iteration):
        OutOfTimeError: At ``end``, by ``time.monotonic``.
        DiedError: The process died.
        FailedError: The work raised.
    """

    def __init__(self, end: float, work: Work, *arguments: Any) -> None:
        self._end = end
        self._results, sender = PROCESSES.Pipe(duplex=False)
        self._process = PROCESSES.Process(target=_serve, args=(sender, work, arguments), daemon=True)
        self._process.start()
        sender.close()

    def __iter__(self) -> Iterator[Any]:
        while self._results.poll(max(0.0, self._end - time.monotonic())):
            try:
                kind, value = self._results.recv()
            except EOFError:
                self._process.join()
                raise DiedError(self._process.exitcode) from None
            if kind == ERROR:
                raise FailedError(value)
            if kind == END:
                return
            yield value
        raise OutOfTimeError

    def __enter__(self) -> "Apart":
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._process.kill()
        self._process.join()
        self._results.close()


def _serve(sender: Connection, work: Work, arguments: tuple[Any, ...]) -> None:
    from qdexp import device as devices

    devices.make_repeatable()
    with contextlib.redirect_stdout(sys.stderr):  # what stages say of themselves
        try:
            for row in work(*arguments):
                sender.send((ROW, row))
            sender.send((END, None))
        except Exception:  # whoever asked for the work is to tell
            sender.send((ERROR, "\n".join(traceback.format_exc().splitlines()[-LINES:])))
