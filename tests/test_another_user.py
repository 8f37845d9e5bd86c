"""Commands on an output folder of another user's, who lets everybody read: reading works, writing says in one line what is
missing. The tests' own user may be root, which then goes without its right to write everywhere."""

import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from qdexp.cell import Cell
from qdexp.sweep.results import enlist

RIGHTS = "-dac_override,-dac_read_search,-fowner"
NOBODY = 65534


@pytest.fixture
def foreign(finished: Callable[..., Cell], tmp_path: Path) -> Path:
    """The output folder of one cell of a sweep, which is somebody else's."""
    cell = finished("method=fp")
    enlist([cell])
    for path in (cell.out, *cell.out.rglob("*")):
        if os.getuid() == 0:
            os.chown(path, NOBODY, NOBODY)
        path.chmod(0o755 if path.is_dir() and os.getuid() == 0 else 0o555 if path.is_dir() else 0o444)
    return cell.out


def run(arguments: Sequence[str]) -> tuple[int, str, str]:
    as_user = ["setpriv", f"--bounding-set={RIGHTS}", f"--inh-caps={RIGHTS}"] if os.getuid() == 0 else []
    done = subprocess.run([*as_user, sys.executable, "-m", *arguments], capture_output=True, text=True)
    return done.returncode, done.stdout, done.stderr


@pytest.mark.skipif(os.getuid() == 0 and shutil.which("setpriv") is None, reason="root, and no setpriv (util-linux)")
def test_what_reads_works_and_what_writes_says_what_is_missing(foreign: Path, tmp_path: Path) -> None:
    out = ["--out", str(foreign)]
    code, said, err = run(["qdexp.sweep", "status", *out])
    assert (code, err) == (0, "") and "1/1 cells complete" in said
    assert run(["qdexp.store", "verify", *out])[0] == 0
    assert run(["qdexp.store", "prune", *out])[0] == 0
    code, said, err = run(["qdexp.store", "prune", "--yes", *out])
    assert code == 1
    assert err.startswith(f"qdexp: {foreign}/store/.pruning-") and err.count("\n") == 1
    assert err.endswith(": Permission denied; this user may not write there: have it allowed, or choose another folder; "
                        "reading goes on without\n")  # fmt: skip
