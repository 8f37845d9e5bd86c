"""A process of this machine that does one job after another: what it loads for the first, which takes seconds, the others find
loaded."""

import contextlib
import gc
import os
import pickle
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable
from multiprocessing.connection import Connection, Pipe
from pathlib import Path

Task = Callable[[], object]
"""The work of a job; it can be pickled."""


class Process:
    """Runs the interpreter and the path of this process, with its variables; of the GPUs it sees ``gpu`` alone, by its name in
    CUDA_VISIBLE_DEVICES, or all where that is empty."""

    def __init__(self, gpu: str = "") -> None:
        self.gpu, self.began = gpu, 0.0
        self.connection, other = Pipe()
        with other:
            command = [sys.executable, "-m", __name__, str(other.fileno())]
            variables = os.environ | ({"CUDA_VISIBLE_DEVICES": gpu} if gpu else {})
            self._process = subprocess.Popen(command, env=variables, stdin=subprocess.DEVNULL, pass_fds=[other.fileno()])

    def begin(self, task: Task, log: Path) -> None:
        """Let it do a job, and write to ``log`` what this prints. Look at ``connection`` for its end, then ask ``result``."""
        self.began = time.monotonic()
        with contextlib.suppress(BrokenPipeError):  # it was killed: the result says so
            self.connection.send_bytes(pickle.dumps((log, pickle.dumps(task))))

    def result(self) -> bool | None:
        """Whether the job succeeded; None where the process has ended. Waits for it."""
        try:
            succeeded: bool = self.connection.recv()
        except (EOFError, ConnectionError):
            return None
        return succeeded

    def stop(self) -> None:
        """Ends it in the middle of its job."""
        self._process.terminate()

    def wait(self, seconds: float) -> None:
        """Lets it end, where it has no job, and returns when it has, or after so many seconds."""
        self.connection.close()
        with contextlib.suppress(subprocess.TimeoutExpired):
            self._process.wait(seconds)


def serve(shell: Connection) -> None:
    """Does what ``shell`` sends, until that has ended."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a Ctrl-C is for the shell, which ends its processes
    with contextlib.suppress(EOFError, ConnectionError):
        while True:
            log, task = pickle.loads(shell.recv_bytes())
            _print_to(log)
            shell.send(_succeeds(task))


def _succeeds(pickled: bytes) -> bool:
    try:
        pickle.loads(pickled)()
    except Exception:
        traceback.print_exc()
        return False
    finally:
        sys.stdout.flush()
        _let_go()
    return True


def _print_to(log: Path) -> None:
    """Send there from now on all that this process, and those that it starts, print."""
    log.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o666)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(file, stream.fileno())
    os.close(file)


def _let_go() -> None:
    """Gives back what the job has kept of memory: while this process waits, others may need it."""
    gc.collect()
    if torch := sys.modules.get("torch"):
        torch.cuda.empty_cache()


if __name__ == "__main__":
    serve(Connection(int(sys.argv[1])))
