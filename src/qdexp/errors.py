"""The one exception for what a user can fix, and how a command says it."""

import contextlib
import os
import re
import signal
import sys
from collections.abc import Iterator

_APPEND = re.compile(r"To append to your config use \S+\s*")
"""Hydra's advice where an option is misspelt: the config has no room for others, so following it ends in the next error."""


class UserError(Exception):
    """Bad input. Each of its arguments is one line that names an option and the fix; it is printed without a traceback."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


class NothingToSplitError(UserError):
    """Split shortcuts were asked of a network that has none: an ablation goes on without this method."""


@contextlib.contextmanager
def one_line(*others: type[Exception]) -> Iterator[None]:
    """Ends the process with one line, exit code 1, where what a user can fix is raised: a UserError, or one of ``others``.

    Where nobody reads any more what it prints (``| head``), it ends without a word, as a shell's own commands do.
    """
    mendable: tuple[type[Exception], ...] = (UserError, *others)
    try:
        try:
            yield
        finally:
            sys.stdout.flush()
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes once more at its end
        sys.exit(128 + signal.SIGPIPE)
    except mendable as error:
        lines = error.args if isinstance(error, UserError) else [_APPEND.sub("--cfg job prints every option. ", str(error))]
        sys.exit("\n".join(f"qdexp: {' '.join(str(line).split())}" for line in lines))  # messages of Hydra have many
