"""Slurm's knowledge of jobs. The controller's word first, accounting for what it has forgotten, and nothing taken for granted.

submitit's own watcher asks sacct alone: it waits for ever where there is no slurmdbd and where an array element was cancelled
before its start, and takes the crash of a node, after which Slurm runs a job again, for its end.
"""

import re
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from qdexp.errors import UserError

LIVE = {"PENDING", "RUNNING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "COMPLETING", "CONFIGURING", "SUSPENDED", "RESIZING",
        "SIGNALING", "SPECIAL_EXIT", "STAGE_OUT", "STOPPED", "PREEMPTED"}  # fmt: skip
"""States of jobs that are still to end. PREEMPTED: to be queued again."""

LOST = "LOST"
"""The state of a job that nobody knows any more."""

GRACE = 10.0
"""Seconds that a job must be unknown before it is called lost: a controller that restarts forgets for a moment."""


class Watcher:
    """Asks as often as ``states`` is called; remembers since when a job is unknown and whether there is accounting."""

    def __init__(self, grace: float = GRACE) -> None:
        self.grace, self._unknown, self._accounting = grace, dict[str, float](), True

    def states(self, ids: Sequence[str]) -> dict[str, str]:
        """The state of each job: Slurm's word, or LOST. An id is that of a job or of one array element, like 12_3."""
        if not ids:
            return {}
        past = self._past(ids) if self._accounting else {}
        said, now, states = queue(), time.monotonic(), dict[str, str]()
        for job in ids:
            state = _state(job, said, past)
            if state is not None:
                self._unknown.pop(job, None)
                states[job] = state
            else:
                lost = now - self._unknown.setdefault(job, now) >= self.grace
                states[job] = LOST if lost else "PENDING"
        return states

    def _past(self, ids: Sequence[str]) -> dict[str, str]:
        whole = sorted({job.partition("_")[0] for job in ids})
        command = ["sacct", "-X", "-n", "--parsable2", "-o", "JobID,State", "-j", ",".join(whole)]
        done = _run(command)
        if done is None or done.returncode:
            self._accounting = False
            return {}
        found: dict[str, str] = {}
        for line in done.stdout.splitlines():
            name, state = line.split("|")
            found |= dict.fromkeys(_elements(name), state.split()[0])  # "CANCELLED by 1000"
        return found


def queue() -> dict[str, str]:
    """The user's jobs that the controller knows, those that ended a few minutes ago among them: id -> state."""
    return dict(line.split("|") for line in _squeue("%i|%T", "-t", "all"))


def names() -> dict[str, str]:
    """The user's jobs that wait or run: the id of each, of an array that of the whole, by its name."""
    found = (line.partition("|") for line in _squeue("%F|%j"))
    return {name: job for job, _, name in found}


def _squeue(form: str, *options: str) -> list[str]:
    done = _run(["squeue", "-h", "-r", "--me", *options, "-o", form])
    if done is None or done.returncode:
        why = "no squeue here" if done is None else " ".join(done.stderr.split())
        raise UserError(f"hydra/launcher=slurm: the queue cannot be asked ({why}); try again on a node where squeue answers")
    return done.stdout.splitlines()


def _state(job: str, said: Mapping[str, str], past: Mapping[str, str]) -> str | None:
    """The controller's word, then accounting's, which may lag: it is believed only where it tells of an end.

    Elements that never started end under the name of their array.
    """
    ended = {name: state for name, state in past.items() if state not in LIVE}
    whole = job.partition("_")[0]
    return next((known[name] for name in (job, whole) for known in (said, ended) if name in known), None)


@dataclass(frozen=True)
class Limits:
    """The elements that an ``array`` may have, and the ``room`` of the controller for more jobs, an element each."""

    array: int
    room: int


def limits() -> Limits:
    """The limits as far as the cluster states them; a job beyond one that it does not state is refused by sbatch."""
    done, known = _run(["scontrol", "show", "config"]), _run(["squeue", "-h", "-r", "-t", "all", "-o", "%i"])
    said = dict(re.findall(r"^(\w+) *= *(\d+)", "" if done is None else done.stdout, flags=re.MULTILINE))
    taken = 0 if known is None else len(known.stdout.splitlines())
    return Limits(max(1, int(said.get("MaxArraySize", 1))), max(0, int(said.get("MaxJobCount", sys.maxsize)) - 1 - taken))


def cancel(ids: Iterable[str]) -> None:
    wanted = sorted(ids)
    for start in range(0, len(wanted), 200):  # a command line has an end
        _run(["scancel", *wanted[start : start + 200]])


def _run(command: list[str]) -> subprocess.CompletedProcess[str] | None:
    try:
        return subprocess.run(command, capture_output=True, text=True)
    except FileNotFoundError:
        return None


def _elements(name: str) -> list[str]:
    """The ids that accounting means by one line: 12, 12_3, or 12_[0-2,5%8] for elements that were never started."""
    base, bracket, inside = name.partition("_[")
    if not bracket:
        return [name]
    ids = []
    for part in inside.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        ids += [f"{base}_{index}" for index in range(int(first), int(last or first) + 1)]
    return ids
