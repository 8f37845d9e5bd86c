"""Sending offline runs, without believing the exit code of `wandb sync`.

`wandb sync` exits 0 for an empty log, a truncated one, a flipped byte and a missing artifact file. So every run is read whole
before it is sent, is given a time limit, and counts as sent only where W&B has left its mark beside the log
(``*.wandb.synced``) and said of no error.
"""

import os
import re
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from qdexp.tracking.log import HEADER, read

ERROR = re.compile(r"\b(error|errors|failed|fatal|panic)\b", re.IGNORECASE)
LINES = 6
"""The number of lines of W&B's own output that are shown where it did not succeed."""


@dataclass(frozen=True)
class Checked:
    """One run's folder and what is wrong with it; ``sent`` where W&B has marked it as synced before."""

    folder: Path
    problems: list[str]
    sent: bool


def runs_in(place: Path) -> list[Path]:
    """The offline runs in ``place``, oldest first, or ``place`` itself where it is one."""
    return [place] if place.name.startswith("offline-run-") else sorted(place.glob("offline-run-*"))


def check(folder: Path) -> Checked:
    """Reads a run's log to its end."""
    logs = sorted(folder.glob("run-*.wandb"))
    sent = any(log.with_suffix(".wandb.synced").exists() for log in logs)
    if len(logs) != 1:
        return Checked(folder, [f"holds {len(logs)} logs (run-*.wandb), not one"], sent)
    return Checked(folder, _problems(logs[0]), sent)


def _problems(log: Path) -> list[str]:
    if log.stat().st_size <= len(HEADER):
        return [f"{log.name} is empty: its process was killed before it wrote"]
    try:
        run = read(log)
    except ValueError as error:
        return [f"{log.name}: {error}: W&B would send what lies before it and call that whole"]
    problems = [] if run.run else [f"{log.name} does not say which run it is"]
    if run.exit_code is None:
        problems.append(f"{log.name} has no end: its process was killed")
    files = [file for artifact in run.artifacts for file in artifact.manifest.contents if file.local_path]
    return problems + [f"artifact file {file.local_path} {state}" for file in files if (state := _changed(file))]


def _changed(file: object) -> str:
    """The fault of a file that an artifact refers to; empty where there is none."""
    path, size = Path(getattr(file, "local_path", "")), int(getattr(file, "size", 0))
    if not path.is_file():
        return "is missing"
    return "" if path.stat().st_size == size else f"has {path.stat().st_size} bytes, not the {size} that were logged"


def send(run: Path, seconds: float) -> str | None:
    """`wandb sync` of one run, at most so long. None where it has succeeded, else what went wrong."""
    command = [sys.executable, "-m", "wandb", "sync", "--yes", str(run)]
    environment = os.environ | {"WANDB_MODE": "online"}
    process = subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment, start_new_session=True
    )
    try:
        said, _ = process.communicate(timeout=seconds)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # W&B's own service too
        process.communicate()
        return f"no end after {seconds:g} s: is the server reached from here?"
    last = "\n".join(said.splitlines()[-LINES:])
    if process.returncode:
        return f"wandb sync ended with {process.returncode}\n{last}"
    if not list(run.glob("*.wandb.synced")):
        return f"wandb sync ended with 0, but did not mark the run as sent\n{last}"
    complaint = next((line for line in said.splitlines() if ERROR.search(line)), None)
    return None if complaint is None else f"wandb sync marked it as sent, but said: {complaint}"


def report(checked: list[Checked]) -> int:
    """Prints a line a run, and the number of those that are not whole."""
    for one in checked:
        state = "; ".join(one.problems) if one.problems else "sent before" if one.sent else "whole"
        print(f"{one.folder.name}  {state}")
    broken = sum(bool(one.problems) for one in checked)
    print(f"{len(checked)} runs, {broken} not whole")
    return broken


def sync(checked: list[Checked], seconds: float) -> int:
    """Sends the whole ones that have not been sent; prints how each went, and returns how many were not sent."""
    failures = 0
    for one in checked:
        if one.problems or one.sent:
            failures += bool(one.problems)
            continue
        problem = send(one.folder, seconds)
        failures += problem is not None
        print(f"{one.folder.name}  {problem or 'sent'}", flush=True)
    return failures
