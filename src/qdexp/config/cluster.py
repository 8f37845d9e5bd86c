"""Options of where the jobs of a sweep go."""

from dataclasses import dataclass, field
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import Field

from qdexp.config.checks import Device, Finite, Name, Positive, Text


@dataclass
class Resources:
    """What one job asks for; ``memory_gb`` null: what the cluster gives by itself."""

    minutes: Annotated[Annotated[int, Ge(10)], Field(description="at least 10: loading the code alone takes some")] = 60
    gpus: Annotated[Annotated[int, Ge(0), Le(1)], Field(description="a job computes on one GPU at most")] = 0
    cpus: Positive = 1
    memory_gb: Annotated[Annotated[float, Gt(0), Finite] | None, Field(description="null: what the cluster gives")] = None


@dataclass
class Cluster:
    """Where jobs go. None of it changes a result, or its key.

    ``device``: what its machines compute on. ``parts``: jobs that draw the images of one cell together. ``parallel``: jobs of
    one kind that run at once. ``stages``: resources by stage; ``default`` is that of all others. ``restarts``: how often a job
    is queued again that reached its time limit. ``gpu_memory_gb``: of one of its GPUs, null: not known. ``tflops``: 10^12
    operations in float32 that one of its devices does in a second, two for a multiply-accumulate; null: not known.
    ``options``: further options of sbatch.
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
