"""Provenance of a number: code, versions, machine."""

import json
import platform
import shlex
import subprocess
import sys
import time
from functools import cache
from importlib.metadata import version
from typing import Any

import torch

from qdexp import machine
from qdexp.paths import PACKAGE

SNAPSHOT = PACKAGE.parent / "snapshot.json"
"""The file beside a copy of the package for the jobs of a sweep: the commit of the checkout that it was made from."""

_PACKAGES = ("qdexp", "torch", "diffusers", "pytorch-lightning", "torch-fidelity", "hydra-core", "numpy")


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", "-C", str(PACKAGE), *arguments], capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None  # installed from a wheel, or no git here
    return done.stdout.strip()


@cache
def commit() -> dict[str, Any]:
    """``commit`` of the checkout that this process runs, and whether it is ``dirty``, as first asked; null outside of one."""
    if SNAPSHOT.exists():
        copied: dict[str, Any] = json.loads(SNAPSHOT.read_text())
        return {"commit": copied["commit"], "dirty": copied["dirty"]}
    ours = _git("ls-files", "--error-unmatch", "paths.py") is not None  # not the repository around an installed wheel
    status = _git("status", "--porcelain", "--untracked-files=no") if ours else None
    return {"commit": _git("rev-parse", "HEAD") if ours else None, "dirty": None if status is None else bool(status)}


def command() -> str:
    """The command of this process, to be pasted into a shell."""
    return shlex.join(["python", *sys.orig_argv[1:]])


def collect(device: torch.device) -> dict[str, Any]:
    """The git commit and whether the checkout is dirty (null outside one), versions, host, machine, command."""
    made = commit()
    return {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": command(),
        "git_commit": made["commit"],
        "git_dirty": made["dirty"],
        "python": platform.python_version(),
        "versions": {package: version(package) for package in _PACKAGES},
        "host": platform.node(),
        "platform": platform.platform(),
        "machine": machine.describe(device),
    }
