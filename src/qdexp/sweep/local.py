"""Runs the graph of a sweep on this machine, several jobs at once, each a process that submitit starts and that ends with the
shell that runs the sweep."""

import os
import signal
import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence

import submitit

from qdexp import progress
from qdexp.sweep.jobs import Node, dependents
from qdexp.sweep.manifest import Registry
from qdexp.sweep.shell import Shell

POLL = 0.2  # seconds
ENDING = 10.0  # seconds that jobs have to end in, once they are told to


class Local:
    """``task`` says what runs in a node's job, and on which GPU. Runs at most ``jobs`` of them at once, each on one of ``gpus``
    that no other has, by its name in CUDA_VISIBLE_DEVICES; without ``gpus``, on none."""

    def __init__(
        self,
        registry: Registry,
        sweep: str,
        jobs: int,
        gpus: Sequence[str],
        task: Callable[[Node, Shell, str], Callable[[], object]],
        shell: Shell,
    ) -> None:
        self.registry, self.sweep, self.jobs, self.task, self.shell = registry, sweep, jobs, task, shell
        self._free, self._taken = deque(gpus or [""] * jobs), dict[str, str]()
        self.executor = submitit.AutoExecutor(folder=registry.layout.logs / "%j", cluster="local")
        self.executor.update_parameters(timeout_min=60 * 24 * 365)  # none: nobody waits for this machine

    def run(self, nodes: Sequence[Node]) -> None:
        """Returns when every node has succeeded, failed, or lost what it needs. Ctrl-C stops the running ones."""
        for node in nodes:
            self.registry.forget(node.id)
        with progress.bar("jobs", len(nodes)) as bar:
            self._run(nodes, bar)

    def _run(self, nodes: Sequence[Node], bar: progress.Bar) -> None:
        waiting, running = {node.id: node for node in nodes}, dict[str, submitit.Job[object]]()
        try:
            while waiting or running:
                self._start(waiting, running)
                ended = [name for name, job in running.items() if job.done()]
                for name in ended:
                    self._free.append(self._taken.pop(name))
                    failed = running.pop(name).exception() is not None
                    if failed:
                        self.registry.ended(name, self.shell.name, "FAILED")
                        for lost in dependents(nodes, [name]) & waiting.keys():
                            del waiting[lost]
                    self._say(name, failed, f"{len(nodes) - len(waiting) - len(running)}/{len(nodes)} jobs")
                    bar.update(len(nodes) - len(waiting) - len(running))
                if not ended:
                    time.sleep(POLL)
        except BaseException:
            self._stop(waiting, running)
            raise

    def _stop(self, waiting: Iterable[str], running: "Mapping[str, submitit.Job[object]]") -> None:
        for job in running.values():
            if not job.done():
                os.kill(int(job.job_id), signal.SIGTERM)  # submitit's own way is a Ctrl-C, which may be ignored
        end = time.monotonic() + ENDING
        while not all(job.done() for job in running.values()) and time.monotonic() < end:
            time.sleep(POLL)
        for name in (*running, *waiting):
            self.registry.ended(name, self.shell.name, "CANCELLED")

    def _start(self, waiting: dict[str, Node], running: dict[str, "submitit.Job[object]"]) -> None:
        for name, node in list(waiting.items()):
            blocked = any(need in waiting or need in running for need in node.needs)
            if not blocked and self._free and len(running) < self.jobs:
                self._taken[name] = self._free.popleft()
                running[name] = self.executor.submit(self.task(waiting.pop(name), self.shell, self._taken[name]))
                self.registry.started(name, self.shell.name, running[name].paths.stdout, self.sweep)

    def _say(self, name: str, failed: bool, progress: str) -> None:
        why = " ".join(self.registry.error(name).get("message", "its process was killed").split())
        print(f"  {progress}  {name}" + (f"  failed: {why}" if failed else ""), flush=True)
