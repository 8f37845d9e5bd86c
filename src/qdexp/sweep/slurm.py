"""Submits the graph of a sweep to Slurm, through submitit, and lets go.

What can be goes in one array. An array waits for whole jobs that all its elements need (``afterok``), and, element for element,
for the elements of other arrays (``aftercorr``): then one broken cell ends in its own elements alone, and no cell waits for
another.
"""

from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import submitit
from submitit.helpers import DelayedSubmission

from qdexp import locks
from qdexp.config import Cluster
from qdexp.errors import UserError
from qdexp.sweep import queue, restarts, submissions
from qdexp.sweep.jobs import Node, depths, readers_of
from qdexp.sweep.manifest import Registry

Task = Callable[[], object]
"""The function that runs in a job: it can be pickled, from a module that the job can import."""


@dataclass(frozen=True)
class Array:
    """Nodes that are submitted with one command; ``dependency`` as sbatch takes it, empty for none."""

    nodes: tuple[Node, ...]
    dependency: str


class Slurm:
    """Submits nodes; ``task`` says what each one runs, ``done`` which need no job any more."""

    def __init__(self, out: Path, sweep: str, cluster: Cluster, task: Callable[[Node], Task], done: Callable[[Node], bool]):
        self.out, self.sweep, self.cluster = out, sweep, cluster
        self.task, self.done, self.registry = task, done, Registry(out)
        self.left = 0
        """Jobs that the cluster had no room for when ``submit`` was last called."""

    def submit(self, nodes: Sequence[Node]) -> list[str]:
        """Submits what is neither done nor in the queue, whoever put it there, as far as the cluster has room; returns the ids
        of the new jobs.

        ``nodes`` are in an order in which they can run. One shell submits at a time, so that none submits what another does.
        """
        with locks.alone(self.registry.layout.jobs_lock, "another shell submits"):
            states, jobs, missing = queue.queue(), dict[str, str](), list[Node]()
            self._adopt(nodes, states)
            for node in nodes:
                job = self.registry.job(node.id).get("id", "")
                if states.get(job) in queue.LIVE:
                    jobs[node.id] = job
                elif not self.done(node):
                    missing.append(node)
            return self._submit(missing, jobs)

    def _submit(self, nodes: list[Node], jobs: dict[str, str]) -> list[str]:
        depth, readers, limits, new = depths(nodes), readers_of(nodes), queue.limits(), list[str]()

        def rank(node: Node) -> tuple[int, str, str]:
            return depth[node.id], node.kind, readers[node.id]  # alike in what follows: their readers are arrays again

        for (_, kind, _), group in groupby(sorted(nodes, key=rank), key=rank):
            for array in arrays(list(group), jobs, limits.array):
                self.left = len(nodes) - len(new)
                if len(new) + len(array.nodes) > limits.room:
                    return new  # what comes later may need these
                submission, note = submissions.begin(self.registry.layout, self.sweep, kind, [node.id for node in array.nodes])
                for node, job in zip(array.nodes, self._send(kind, array, submission.name), strict=True):
                    jobs[node.id] = job.job_id
                    new.append(job.job_id)
                    self.registry.submitted(node.id, job.job_id, job.paths.stdout, self.sweep)
                note.unlink()
        self.left = 0
        return new

    def _adopt(self, nodes: Sequence[Node], states: Mapping[str, str]) -> None:
        """Jobs that a shell has submitted that was killed before it could register them."""
        by_id = {node.id: node for node in nodes}

        def told(name: str) -> DelayedSubmission | None:
            if name not in by_id:
                return None
            delayed = DelayedSubmission(self.task(by_id[name]))
            delayed.set_timeout(self.cluster.resources(by_id[name].kind).minutes, self.cluster.restarts)
            return delayed

        submissions.adopt(self.registry, states, lambda name: name in by_id and self.done(by_id[name]), told)

    def _send(self, kind: str, array: Array, name: str) -> list[Any]:
        executor = submitit.AutoExecutor(
            folder=self.registry.layout.logs / "%j", cluster="slurm", slurm_max_num_timeout=self.cluster.restarts
        )
        executor.update_parameters(**self._parameters(kind, array.dependency), name=name)
        try:
            with executor.batch():
                jobs = [executor.submit(self.task(node)) for node in array.nodes]
            return [job for job in jobs if job.job_id]
        except submitit.core.utils.FailedJobError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cluster={self.cluster.name}: Slurm refuses the {kind} jobs ({reason}); change the profile, or "
                            f"wait; what was submitted runs, and the same command submits the rest") from error  # fmt: skip

    def _parameters(self, kind: str, dependency: str) -> dict[str, Any]:
        cluster, wants = self.cluster, self.cluster.resources(kind)
        named = {name: getattr(cluster, name) for name in ("partition", "account", "qos", "constraint")}
        waits = {"dependency": dependency, "kill-on-invalid-dep": "yes"} if dependency else {}
        asked = {
            "timeout_min": wants.minutes,
            "cpus_per_task": wants.cpus,
            "mem_gb": wants.memory_gb,
            "gpus_per_node": wants.gpus or None,
            "slurm_array_parallelism": cluster.parallel,
            "slurm_setup": cluster.setup or None,
            "slurm_signal_delay_s": restarts.warning(wants.minutes),
            "slurm_stderr_to_stdout": True,
            "slurm_additional_parameters": {**cluster.options, **waits},
            **{f"slurm_{name}": value for name, value in named.items()},
        }
        return {name: value for name, value in asked.items() if value is not None}


def arrays(nodes: Sequence[Node], jobs: Mapping[str, str], largest: int) -> Iterator[Array]:
    """Cuts ``nodes``, which ask for the same resources and do not need each other, into arrays of at most ``largest``.

    ``jobs``: the job of each node that is submitted; a need that has none is there already.
    """
    alike: dict[tuple[str, ...], list[Node]] = defaultdict(list)
    for node in nodes:
        alike[tuple(sorted({_base(job) for job in _needs(node, jobs)}))].append(node)
    for group in alike.values():
        yield from _cut(group, jobs, largest)


def _cut(group: list[Node], jobs: Mapping[str, str], largest: int) -> Iterator[Array]:
    needs = {node.id: set(_needs(node, jobs)) for node in group}
    common = set.intersection(*needs.values())
    lines = _lines({node.id: needs[node.id] - common for node in group})
    if lines is None:
        for node in group:
            yield Array((node,), _after(needs[node.id]))
        return
    by_id = {node.id: node for node in group}
    for line, bases in lines:
        for start in range(0, len(line), largest):
            chunk = tuple(by_id[name] for name in line[start : start + largest])
            yield Array(chunk, ",".join(filter(None, [_after(common), *(f"aftercorr:{base}" for base in bases)])))


def _lines(own: dict[str, set[str]]) -> list[tuple[list[str], list[str]]] | None:
    """Nodes in the order of the elements that they need, as often as each element is needed, and the arrays of those.

    None where nodes and elements do not stand side by side: where a node needs elements of several places, or an element of
    the middle is needed by none.
    """
    if not any(own.values()):
        return [(list(own), [])]
    places: dict[int, list[str]] = defaultdict(list)
    for node, elements in own.items():
        indices = {int(index) if index else -1 for _, _, index in (job.partition("_") for job in elements)}
        if len(indices) != 1 or -1 in indices:
            return None
        places[indices.pop()].append(node)
    if sorted(places) != list(range(len(places))) or len(places) == 1 or len({len(nodes) for nodes in places.values()}) > 1:
        return None
    bases = sorted({_base(job) for job in next(iter(own.values()))})
    if any(sorted(map(_base, elements)) != bases for elements in own.values()):
        return None
    return [([places[place][turn] for place in range(len(places))], bases) for turn in range(len(places[0]))]


def _needs(node: Node, jobs: Mapping[str, str]) -> list[str]:
    return [jobs[need] for need in node.needs if need in jobs]


def _base(job: str) -> str:
    return job.partition("_")[0]


def _after(jobs: set[str]) -> str:
    return f"afterok:{':'.join(sorted(jobs))}" if jobs else ""
