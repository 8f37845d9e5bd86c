"""Submits the graph of a sweep to Slurm, through submitit, and lets go."""

import contextlib
from collections.abc import Callable, Iterator, Sequence
from itertools import groupby
from pathlib import Path
from typing import Any

import submitit
from filelock import FileLock

from qdexp.config import Cluster
from qdexp.errors import UserError
from qdexp.layout import Layout
from qdexp.sweep import queue
from qdexp.sweep.arrays import Array, arrays
from qdexp.sweep.graph import RECORD, Node, depths, readers_of
from qdexp.sweep.manifest import Registry

Task = Callable[[], object]
"""What runs in a job: it can be pickled, from a module that the job can import."""


class Slurm:
    """Submits nodes; ``task`` says what each one runs, ``done`` which need no job any more."""

    def __init__(self, out: Path, sweep: str, cluster: Cluster, task: Callable[[Node], Task], done: Callable[[Node], bool]):
        self.out, self.sweep, self.cluster = out, sweep, cluster
        self.task, self.done, self.registry = task, done, Registry(out)

    def submit(self, nodes: Sequence[Node]) -> list[str]:
        """Submits what is neither done nor in the queue, whoever put it there; returns the ids of the new jobs.

        ``nodes`` are in an order in which they can run. One shell submits at a time, so that none submits what another does.
        """
        with _alone(self.registry.layout):
            states, jobs, missing = queue.queue(), dict[str, str](), list[Node]()
            for node in nodes:
                job = self.registry.job(node.id).get("id", "")
                if states.get(job) in queue.LIVE:
                    jobs[node.id] = job
                elif not self.done(node):
                    missing.append(node)
            return self._submit(missing, jobs)

    def _submit(self, nodes: list[Node], jobs: dict[str, str]) -> list[str]:
        depth, readers, largest, new = depths(nodes), readers_of(nodes), queue.largest_array(), list[str]()

        def rank(node: Node) -> tuple[int, str, str]:
            return depth[node.id], node.kind, readers[node.id]  # alike in what follows: their readers are arrays again

        for (_, kind, _), group in groupby(sorted(nodes, key=rank), key=rank):
            for array in arrays(list(group), jobs, largest):
                for node, job in zip(array.nodes, self._send(kind, array), strict=True):
                    jobs[node.id] = job.job_id
                    new.append(job.job_id)
                    self.registry.submitted(node.id, job.job_id, job.paths.stdout, self.sweep)
        return new

    def _send(self, kind: str, array: Array) -> list[Any]:
        executor = submitit.AutoExecutor(
            folder=self.registry.layout.logs / "%j", cluster="slurm", slurm_max_num_timeout=self.cluster.restarts
        )
        executor.update_parameters(**self._parameters(kind, array.dependency))
        try:
            with executor.batch():
                jobs = [executor.submit(self.task(node)) for node in array.nodes]
            return [job for job in jobs if job.job_id]
        except submitit.core.utils.FailedJobError as error:
            reason = " ".join(str(error).split())
            raise UserError(f"cluster={self.cluster.name}: Slurm refuses the {kind} jobs ({reason}); change the profile, or "
                            f"wait; what was submitted runs, and the same command submits the rest") from error  # fmt: skip

    def _parameters(self, kind: str, dependency: str) -> dict[str, Any]:
        cluster, wants = self.cluster, self.cluster.resources("evaluation" if kind == RECORD else kind)
        named = {name: getattr(cluster, name) for name in ("partition", "account", "qos", "constraint")}
        waits = {"dependency": dependency, "kill-on-invalid-dep": "yes"} if dependency else {}
        asked = {
            "name": f"{self.sweep}:{kind}",
            "timeout_min": wants.minutes,
            "cpus_per_task": wants.cpus,
            "mem_gb": wants.memory_gb,
            "gpus_per_node": wants.gpus or None,
            "slurm_array_parallelism": cluster.parallel,
            "slurm_setup": cluster.setup or None,
            "slurm_stderr_to_stdout": True,
            "slurm_additional_parameters": {**cluster.options, **waits},
            **{f"slurm_{name}": value for name, value in named.items()},
        }
        return {name: value for name, value in asked.items() if value is not None}


@contextlib.contextmanager
def _alone(layout: Layout) -> Iterator[None]:
    layout.jobs.mkdir(parents=True, exist_ok=True)
    with FileLock(layout.jobs_lock):
        yield
