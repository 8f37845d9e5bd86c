"""Runs the graph of a sweep on this machine, several jobs at once, in processes that end with the shell that runs the sweep."""

import time
from collections import deque
from collections.abc import Callable, Sequence
from multiprocessing.connection import wait

from qdexp import progress
from qdexp.sweep.jobs import Node, dependents
from qdexp.sweep.manifest import Registry
from qdexp.sweep.process import Process, Task
from qdexp.sweep.shell import Shell

POLL = 0.2
"""Seconds after which somebody who cancels is listened to."""
ENDING = 10.0
"""Seconds that processes have to end in, once they are told to."""


class Local:
    """Runs at most ``jobs`` jobs at once, each on one of ``gpus`` that no other has, by its name in CUDA_VISIBLE_DEVICES;
    without ``gpus``, on none.

    ``task``: what is done in a node's job; ``ended``: called with each node that has ended, and whether it failed.
    """

    def __init__(
        self,
        registry: Registry,
        sweep: str,
        jobs: int,
        gpus: Sequence[str],
        task: Callable[[Node, Shell], Task],
        shell: Shell,
        ended: Callable[[Node, bool], object] = lambda node, failed: None,
    ) -> None:
        self.registry, self.sweep, self.jobs, self.task, self.shell, self.ended = registry, sweep, jobs, task, shell, ended
        self._free, self._idle = deque(gpus or [""] * jobs), list[Process]()

    def run(self, nodes: Sequence[Node]) -> None:
        """Returns when every node has succeeded, failed, or lost what it needs. Ctrl-C stops the running ones."""
        for node in nodes:
            self.registry.forget(node.id)
        waiting, running = {node.id: node for node in nodes}, dict[str, tuple[Node, Process]]()
        try:
            with progress.bar("jobs", len(nodes)) as bar:
                while waiting or running:
                    self._start(waiting, running)
                    ready = wait([process.connection for _, process in running.values()], POLL)
                    for node, process in [one for one in running.values() if one[1].connection in ready]:
                        del running[node.id]
                        seconds = time.monotonic() - process.began
                        failed = not self._ended(process)
                        if failed:
                            self.registry.ended(node.id, self.shell.name, "FAILED")
                            for lost in dependents(nodes, [node.id]) & waiting.keys():
                                del waiting[lost]
                        done = len(nodes) - len(waiting) - len(running)
                        bar.update(done)
                        how = f"failed: {self._why(node)}" if failed else f"{seconds:.1f} s"
                        print(f"  {done}/{len(nodes)} jobs  {node.id}  {how}", flush=True)
                        self.ended(node, failed)
        except BaseException:
            for _, process in running.values():
                process.stop()
            for name in (*running, *waiting):
                self.registry.ended(name, self.shell.name, "CANCELLED")
            raise
        finally:
            end = time.monotonic() + ENDING
            for process in (*self._idle, *(process for _, process in running.values())):
                process.wait(max(0.0, end - time.monotonic()))

    def _start(self, waiting: dict[str, Node], running: dict[str, tuple[Node, Process]]) -> None:
        for name, node in list(waiting.items()):
            blocked = any(need in waiting or need in running for need in node.needs)
            if not blocked and (self._idle or self._free) and len(running) < self.jobs:
                process = self._idle.pop() if self._idle else Process(self._free.popleft())
                running[name] = waiting.pop(name), process
                log = self.registry.layout.logs / name / "log.txt"
                self.registry.started(name, self.shell.name, log, self.sweep)
                process.begin(self.task(node, self.shell), log)

    def _ended(self, process: Process) -> bool:
        """Whether its job has succeeded. Another one takes the place of a process that was killed."""
        succeeded = process.result()
        if succeeded is None:
            process.wait(ENDING)
            self._free.append(process.gpu)
        else:
            self._idle.append(process)
        return bool(succeeded)

    def _why(self, node: Node) -> str:
        return " ".join(self.registry.error(node.id).get("message", "its process was killed").split())
