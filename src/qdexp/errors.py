"""The one exception for what a user can fix, and how a command says it."""

import contextlib
import errno
import logging
import os
import re
import signal
import sys
import unicodedata
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

_NOISE = re.compile(r"\s*(Config search path:|full_key:).*", re.DOTALL)
"""The part of Hydra's messages for those who build on it."""
_PLACE = re.compile(r"In '(.*?)': ")
"""The way in which Hydra names the file that makes a choice."""


logging.getLogger("hydra.utils").addHandler(logging.NullHandler())  # else it prints what it raises too


class UserError(Exception):
    """Bad input. Each argument is one line that names an option and the fix; commands print it without a traceback."""

    def __str__(self) -> str:
        return "\n".join(map(str, self.args))


def printable(text: str) -> str:
    """Return the text in one line, with control characters, line breaks among them, as spaces."""
    return "".join(" " if unicodedata.category(one) in ("Cc", "Zl", "Zp") else one for one in text)


def did_you_mean(word: str, known: Sequence[str], told: Sequence[str] = ()) -> str:
    """``, did you mean X?`` of the nearest of what is ``known``, called as in ``told``; empty where nothing is near."""
    lower = [one.lower() for one in known]
    near = get_close_matches(word.lower(), lower, 1)
    return f", did you mean {(told or known)[lower.index(near[0])]}?" if near else ""


class NothingToSplitError(UserError):
    """A network has no concatenation for split shortcuts: an ablation goes on without this method."""


def of_writing(error: OSError) -> str | None:
    """The advice for an error of writing, or of a name that no file can have; None for other errors."""
    if error.errno in (errno.ENOSPC, errno.EDQUOT):
        return "free some space or choose another folder; finished stages are kept"
    if error.errno in (errno.ENAMETOOLONG, errno.ENOTDIR, errno.ELOOP):
        return "nothing can be called so; name another file or folder"
    if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS):
        return "this user may not write there: have it allowed, or choose another folder; reading goes on without"
    return None


@contextlib.contextmanager
def one_line(*others: type[Exception]) -> Iterator[None]:
    """Ends the process with one line, exit code 1, where what a user can fix is raised: a UserError, or one of ``others``; and
    where nothing can be written.

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
        lines = error.args if isinstance(error, UserError) else [_told(error)]
        sys.exit("\n".join(f"qdexp: {' '.join(printable(str(line)).split())}" for line in lines))  # messages of Hydra have many
    except OSError as error:
        if (fix := of_writing(error)) is None:
            raise
        sys.exit(f"qdexp: {printable(str(error.filename2 or error.filename or 'out'))}: {error.strerror}; {fix}")


def _told(error: Exception) -> str:
    """A message of Hydra or OmegaConf, without what it says to those who build on it; of a choice that is not there as ours."""
    missing, options = getattr(error, "missing_cfg_file", None), getattr(error, "options", None)
    if not missing or not options:
        return _NOISE.sub("", str(error))
    group, _, choice = str(missing).rpartition("/")
    place = _PLACE.match(str(error))
    within = f" (in {place[1]}.yaml)" if place and not place[1].endswith("config") else ""
    return (f"{group}={choice}{within}: there is no such choice{did_you_mean(choice, options)}; there are "
            f"{', '.join(options)}; yours are PATH/{group}/NAME.yaml of hydra.searchpath=[file:///PATH]")  # fmt: skip
