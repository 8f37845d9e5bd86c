"""The shell that runs a sweep on its own machine, as other processes know it: whether it lives, and how to end it.

It holds a lock (flock) on a file of the sweep as long as it lives, which the system lets go however it ends. So nobody takes a
process id, which another process has tomorrow, for it; and its workers, which wait for the lock, end when it does. What a lock
cannot tell, on another host or where the file system knows none, the file does: the shell touches it as long as it lives.
"""

import contextlib
import fcntl
import os
import signal
import socket
import threading
import time
from _thread import interrupt_main
from collections.abc import Iterator
from pathlib import Path
from typing import IO
from uuid import uuid4

from qdexp import files, locks
from qdexp.errors import UserError
from qdexp.layout import Sweep

POLL = 0.2  # seconds
AGAIN = 15.0
"""Seconds after which one that was asked to end is interrupted once more: Python drops what it raises in a finalizer."""
PATIENCE = 60.0
"""Seconds that a shell has to stop its jobs in, once it is asked to."""


_followed = set[Path]()
"""The shells with which this process ends."""


class Shell:
    """A shell that runs ``sweep``, called ``name``: the file that it has locked holds where it runs."""

    def __init__(self, sweep: Sweep, name: str) -> None:
        self.name, self.path, self._asked = name, sweep.shell(name), sweep.shell_cancelled(name)

    @property
    def lives(self) -> bool:
        try:
            with self.path.open() as file:
                known = _lock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
                here = file.read().splitlines()[1:] == [_host()]
        except BlockingIOError:
            return True
        except FileNotFoundError:
            return False
        return not (known and here) and locks.lives(self.path)

    @property
    def place(self) -> str:
        """``process 4711 on HOST``."""
        with contextlib.suppress(FileNotFoundError):
            return self.path.read_text().partition("\n")[0] or "a process"
        return "a process that has ended"

    @property
    def cancelled(self) -> bool:
        """Whether somebody has asked it to end."""
        return self._asked.exists()

    def cancel(self) -> None:
        """Asks it to end, and returns when it has. Raises UserError where it has not after a minute."""
        self._asked.touch()
        end = time.monotonic() + PATIENCE
        while self.lives:
            if time.monotonic() > end:
                raise UserError(f"cancel: {self.place} has not ended within {PATIENCE:.0f} s; end it there with kill")
            time.sleep(POLL)
        self.forget()

    def forget(self) -> None:
        self.path.unlink(missing_ok=True)
        self._asked.unlink(missing_ok=True)

    def end_with(self) -> None:
        """Have this process killed, at any moment from now on, when the shell ends: what it had finished is kept."""
        if self.path in _followed:
            return
        _followed.add(self.path)

        def wait() -> None:
            with contextlib.suppress(FileNotFoundError), self.path.open() as file:
                if not _lock(file, fcntl.LOCK_SH):
                    while self.lives:
                        time.sleep(locks.BEAT)
            os.write(2, b"qdexp: the shell that started this job has ended, and so does the job\n")
            os.kill(os.getpid(), signal.SIGKILL)

        threading.Thread(target=wait, daemon=True).start()


def _lock(file: IO[str], how: int) -> bool:
    """Whether the file system knows locks; raises BlockingIOError as ``flock`` does."""
    try:
        fcntl.flock(file, how)
    except OSError as error:
        if error.errno not in locks.UNKNOWN:
            raise
        return False
    return True


def _host() -> str:
    """An identity of the machine since its last start."""
    with contextlib.suppress(OSError):
        return Path("/proc/sys/kernel/random/boot_id").read_text().strip()
    return socket.gethostname()


def living(sweep: Sweep) -> list[Shell]:
    """The shells that run the sweep now."""
    return [shell for shell in _all(sweep) if shell.lives]


def _all(sweep: Sweep) -> list[Shell]:
    return [Shell(sweep, path.name) for path in sweep.all_shells()]


@contextlib.contextmanager
def running(sweep: Sweep) -> Iterator[Shell]:
    """While the work within lasts this process is a shell of the sweep. Call it in the main thread.

    Raises UserError where somebody cancels it: it meets the work as a Ctrl-C would, also where that is ignored, as of what a
    script starts in the background.
    """
    sweep.shells.mkdir(parents=True, exist_ok=True)
    for shell in _all(sweep):
        if not shell.lives:
            shell.forget()
    shell = Shell(sweep, uuid4().hex[:12])
    part = shell.path.with_name(f"{files.PART}{shell.name}")
    with part.open("w") as held, locks.beating(held.fileno()):
        held.write(f"process {os.getpid()} on {socket.gethostname()}\n{_host()}\n")
        held.flush()
        _lock(held, fcntl.LOCK_EX)
        part.rename(shell.path)  # nobody sees it without its lock
        over, before = threading.Event(), signal.signal(signal.SIGUSR2, signal.default_int_handler)
        listener = threading.Thread(target=_listen, args=(shell, over), daemon=True)
        listener.start()
        try:
            yield shell
        except KeyboardInterrupt:
            if not shell.cancelled:
                raise
            raise UserError(f"sweep {sweep.folder.name}: cancelled by python -m qdexp.sweep cancel; finished stages are kept, "
                            f"the same command goes on") from None  # fmt: skip
        finally:
            over.set()
            listener.join()
            signal.signal(signal.SIGUSR2, before)
            shell.forget()


def _listen(shell: Shell, over: threading.Event) -> None:
    while not over.wait(POLL):
        if shell.cancelled:
            interrupt_main(signal.SIGUSR2)
            over.wait(AGAIN)
