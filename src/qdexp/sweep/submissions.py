"""Submissions in progress: written down before Slurm is asked, and struck out when every node knows its job.

A shell that is killed between the two, or told of a failure though Slurm has taken the jobs, leaves jobs that nobody knows.
They carry the name that is written down, and so are found again before anything is submitted anew.
"""

import json
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from uuid import uuid4

from submitit.core.utils import JobPaths
from submitit.helpers import DelayedSubmission

from qdexp import files
from qdexp.layout import Layout
from qdexp.sweep import queue
from qdexp.sweep.manifest import Registry

LATE = 3600.0
"""Seconds after which a submission that the queue does not know is not expected to arrive in it any more."""


@dataclass(frozen=True)
class Submission:
    """The ``nodes`` of one sbatch, in the order of the elements of its array, and the ``name`` of its jobs."""

    name: str
    sweep: str
    nodes: list[str]

    def job(self, base: str, node: str) -> str:
        """The id of a node's job, where Slurm has called the whole ``base``."""
        return f"{base}_{self.nodes.index(node)}" if len(self.nodes) > 1 else base


def begin(layout: Layout, sweep: str, kind: str, nodes: list[str]) -> tuple[Submission, Path]:
    """Writes a submission down; returns where, too, to be removed once each of its nodes is registered."""
    own = uuid4().hex[:12]
    path, submission = layout.submitting(own), Submission(f"{sweep}:{kind}:{own}", sweep, nodes)
    files.write_text(path, json.dumps(asdict(submission)))
    return submission, path


def orphans(layout: Layout) -> dict[Path, tuple[Submission, str]]:
    """Submissions that were not struck out and wait or run, with their ids; others are forgotten once they are old."""
    found = {}
    names = queue.names() if (paths := layout.all_submitting()) else {}
    for path in paths:
        try:
            submission = files.read_as(path, Submission)
        except FileNotFoundError:
            continue  # another shell has finished with it
        except ValueError:  # of another version
            submission = None
        if submission is not None and submission.name in names:
            found[path] = submission, names[submission.name]
        elif _age(path) > LATE:
            path.unlink(missing_ok=True)
    return found


def adopt(
    registry: Registry, states: Mapping[str, str], done: Callable[[str], bool], task: Callable[[str], DelayedSubmission | None]
) -> None:
    """Registers the jobs of orphans, and cancels those of nodes that are ``done`` or have another live job by ``states``.

    ``task``: what runs in a node's job, which submitit may not have come to telling it; None where this shell does not know.
    """
    for path, (submission, base) in orphans(registry.layout).items():
        needless = list[str]()
        for node in submission.nodes:
            job, known = submission.job(base, node), registry.job(node).get("id", "")
            if done(node) or (known != job and states.get(known) in queue.LIVE):
                needless.append(job)
                continue
            paths = JobPaths(registry.layout.logs / "%j", job_id=job, task_id=0)
            if not paths.submitted_pickle.exists() and (own := task(node)) is not None:
                paths.folder.mkdir(parents=True, exist_ok=True)
                own.dump(paths.submitted_pickle)
            registry.submitted(node, job, paths.stdout, submission.sweep)
        queue.cancel(needless)
        found = len(submission.nodes) - len(needless)
        print(f"found    {found} jobs of {submission.sweep} that were submitted, and not noted down", flush=True)
        path.unlink(missing_ok=True)


def cancel(layout: Layout, sweep: str) -> int:
    """Cancels the orphans of a sweep; returns of how many nodes."""
    own = {path: found for path, found in orphans(layout).items() if found[0].sweep == sweep}
    queue.cancel(base for _, base in own.values())
    for path in own:
        path.unlink(missing_ok=True)
    return sum(len(submission.nodes) for submission, _ in own.values())


def _age(path: Path) -> float:
    try:
        return abs(time.time() - path.stat().st_mtime)
    except FileNotFoundError:
        return 0.0
