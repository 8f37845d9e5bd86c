"""Options of where the jobs of a sweep go."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import Field

from qdexp.config.checks import Device, Finite, Name, Positive, Text


@dataclass(frozen=True)
class Resources:
    """The resources of one job.

    Attributes:
        minutes: The time limit.
        gpus: The number of GPUs.
        cpus: The number of CPU cores.
        memory_gb: The host's memory; null: what the cluster gives by default.
    """

    minutes: Annotated[Annotated[int, Ge(10)], Field(description="at least 10: loading the code alone takes some")] = 60
    gpus: Annotated[Annotated[int, Ge(0), Le(1)], Field(description="a job computes on one GPU at most")] = 0
    cpus: Positive = 1
    memory_gb: Annotated[Annotated[float, Gt(0), Finite] | None, Field(description="null: what the cluster gives")] = None


@dataclass(frozen=True)
class Cluster:
    """The cluster that jobs go to. No option changes a result, or its key.

    Attributes:
        name: The choice of ``cluster``.
        device: The device that its machines compute on.
        parts: The number of jobs that draw the images of one cell together.
        parallel: The number of jobs of one kind that run at once.
        restarts: How often a job that reached its time limit is queued again.
        stages: Resources by stage; ``default`` is for all others.
        gpu_memory_gb: The memory of one GPU; null: unknown.
        tflops: The speed of one device in float32, $10^{12}$ operations per second, two per multiply-accumulate; null: unknown.
        partition: The partition that jobs are submitted to.
        account: The account that jobs are charged to.
        qos: The quality of service.
        constraint: The features that nodes must have.
        setup: Lines of shell that each job runs first.
        options: Further options of sbatch.
    """

    name: Name
    device: Device
    parts: Positive
    parallel: Positive
    restarts: Annotated[int, Ge(0)]
    stages: dict[str, Resources]
    gpu_memory_gb: Annotated[Annotated[float, Gt(0), Finite] | None, Field(description="of one GPU; null: not known")] = None
    tflops: Annotated[Annotated[float, Gt(0), Finite] | None, Field(description="TFLOP/s; null: not known")] = None
    partition: Text | None = None
    account: Text | None = None
    qos: Text | None = None
    constraint: Text | None = None
    setup: list[Text] = field(default_factory=list)
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if "default" not in self.stages:
            raise ValueError(f"stages={sorted(self.stages)}: add the resources of default")

    def resources(self, stage: str) -> Resources:
        return self.stages.get(stage, self.stages["default"])
