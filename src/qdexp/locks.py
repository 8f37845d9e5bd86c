"""Locks that save work and that no result rests on: nobody waits for ever, and what cannot be locked is done all the same.

A lock is a file. Its owner holds ``flock`` on it, which the system lets go however the owner ends; where the file system knows
no locks (NFS without lockd, Lustre without flock) the owner is whoever has made the file ``NAME.taken``. As a sign of life it
touches the file again and again: an owner whose file has not changed for as long as ``SILENCE``, by the clock of the one who
waits, has died on another host, or hangs, and the lock is taken over.
"""

import contextlib
import errno
import fcntl
import os
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from uuid import uuid4

BEAT = 15.0
"""Seconds between two signs of life."""
SILENCE = 180.0
"""Seconds without one after which nobody is expected to live: a network file system may show a file a minute late."""
POLL = 0.2  # seconds

UNKNOWN = (errno.ENOLCK, errno.ENOSYS, errno.EOPNOTSUPP)
"""The errors of a file system without locks."""
_CLOSED = (errno.EACCES, errno.EPERM, errno.EROFS)
"""The errors of a file system on which this user may not write: the work that follows says so, if it has to write."""


@contextlib.contextmanager
def alone(path: Path, waiting_for: str) -> Iterator[None]:
    """No other process of any host is within at once, as far as locks of ``path`` can tell. Prints what it waits for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    held = _held(path, waiting_for)
    if held is None:
        yield
        return
    file, name = held
    try:
        with beating(file):
            yield
    finally:
        with contextlib.suppress(OSError):
            if _is_there(file, name):  # and has not been taken over
                name.unlink()
        os.close(file)


@contextlib.contextmanager
def beating(file: int) -> Iterator[None]:
    """Signs of life on an open file, as long as the work within lasts."""
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT):
            with contextlib.suppress(OSError):
                os.utime(file)

    thread = threading.Thread(target=beat, daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def lives(path: Path, within: float | None = None) -> bool:
    """Whether the file was touched ``within`` so many seconds (default: ``SILENCE``), by the file system's own clock where that
    can be asked."""
    now, probe = time.time(), path.with_name(f".probe-{uuid4().hex[:12]}")
    try:
        with contextlib.suppress(OSError):
            probe.touch()
            now = probe.stat().st_mtime
        return abs(now - path.stat().st_mtime) < (SILENCE if within is None else within)
    except FileNotFoundError:
        return False
    finally:
        with contextlib.suppress(OSError):
            probe.unlink(missing_ok=True)


def _held(path: Path, waiting_for: str) -> tuple[int, Path] | None:
    """The open file that makes this process the owner, and its name; None where it has to go on without."""
    since, seen, said = time.monotonic(), dict[Path, tuple[int, int]](), False
    while True:
        try:
            held, name = _taken(path)
        except OSError as error:
            if error.errno in _CLOSED:
                return None
            raise
        if held is not None:
            return held, name
        sign = _sign(name)
        if sign != seen.get(name):
            since, seen = time.monotonic(), {name: sign}
        if not said:
            print(f"waiting: {waiting_for}", flush=True)
            said = True
        if time.monotonic() - since > SILENCE:
            print(f"no sign of life for {SILENCE:.0f} s: {name} is taken over", flush=True)
            name.unlink(missing_ok=True)
        else:
            time.sleep(POLL)


def _taken(path: Path) -> tuple[int | None, Path]:
    """An open file if this process owns the lock now, and the name of the file that it is about."""
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        if _is_there(file, path):  # its last owner has not removed it meanwhile
            return file, path
    except BlockingIOError:
        pass
    except OSError as error:
        os.close(file)
        if error.errno not in UNKNOWN:
            raise
        taken = path.with_name(f"{path.name}.taken")
        try:
            return os.open(taken, os.O_RDWR | os.O_CREAT | os.O_EXCL, 0o666), taken
        except FileExistsError:
            return None, taken
    os.close(file)
    return None, path


def _is_there(file: int, path: Path) -> bool:
    """Whether the open file still has the name."""
    try:
        return os.path.samestat(os.fstat(file), path.stat())
    except FileNotFoundError:
        return False


def _sign(path: Path) -> tuple[int, int]:
    try:
        found = path.stat()
    except FileNotFoundError:
        return 0, 0
    return found.st_ino, found.st_mtime_ns
