"""Options of where the jobs of a sweep go."""

import math
from dataclasses import dataclass, field
from typing import Any

from qdexp.config.checks import require


@dataclass
class Resources:
    """What one job asks for; ``memory_gb`` null: what the cluster gives by itself."""

    minutes: int = 60
    gpus: int = 0
    cpus: int = 1
    memory_gb: float | None = None

    def __post_init__(self) -> None:
        require(self.minutes > 0, "cluster.stages.*.minutes", self.minutes, "choose at least 1")
        require(self.gpus >= 0, "cluster.stages.*.gpus", self.gpus, "choose 0 or more")
        require(self.cpus > 0, "cluster.stages.*.cpus", self.cpus, "choose at least 1")
        some = self.memory_gb is None or 0 < self.memory_gb < math.inf
        require(some, "cluster.stages.*.memory_gb", self.memory_gb, "choose more than 0, or null for what the cluster gives")


@dataclass
class Cluster:
    """Where jobs go. None of it changes a result, or its key.

    ``device``: what its machines compute on. ``parts``: jobs that draw the images of one cell together. ``parallel``: jobs of
    one kind that run at once. ``stages``: resources by stage; ``default`` is that of all others. ``restarts``: how often a job
    is queued again that reached its time limit. ``options``: further options of sbatch.
    """

    name: str
    device: str
    parts: int
    parallel: int
    restarts: int
    stages: dict[str, Resources]
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    constraint: str | None = None
    setup: list[str] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        known = ("auto", "cpu", "cuda")
        require(self.device in known, "cluster.device", self.device, f"choose one of {', '.join(known)}")
        for option in ("parts", "parallel"):
            require(getattr(self, option) > 0, f"cluster.{option}", getattr(self, option), "choose at least 1")
        require(self.restarts >= 0, "cluster.restarts", self.restarts, "choose 0 or more")
        require("default" in self.stages, "cluster.stages", sorted(self.stages), "add the resources of default")

    def resources(self, stage: str) -> Resources:
        return self.stages.get(stage, self.stages["default"])
