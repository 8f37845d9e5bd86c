"""The launchers of qdexp. They get cells that are composed and checked already, and run what was frozen.

``hydra/launcher=sequential``: one cell after another, here. ``local``: the sweep's graph of jobs, several processes at once.
``slurm``: the same graph, submitted to Slurm; the shell returns at once. Hydra's own launchers work too, and compose again.
"""

from abc import abstractmethod
from collections.abc import Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from types import ModuleType
from typing import TYPE_CHECKING, Any

from hydra.core.config_store import ConfigStore
from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from qdexp.errors import UserError

if TYPE_CHECKING:
    from qdexp.cell import Cell

_HERE = "hydra_plugins.qdexp.launchers"


@dataclass
class SequentialConf:
    _target_: str = f"{_HERE}.SequentialLauncher"
    dry: bool = False
    """Only say what would run."""


@dataclass
class LocalConf:
    _target_: str = f"{_HERE}.LocalLauncher"
    dry: bool = False
    jobs: int | None = None
    """Processes at once; null: as many as the GPUs take, and 2 where there are none."""
    jobs_per_gpu: int = 1
    """Processes that share a GPU."""


@dataclass
class SlurmConf:
    _target_: str = f"{_HERE}.SlurmLauncher"
    dry: bool = False


for name, node in (("sequential", SequentialConf), ("local", LocalConf), ("slurm", SlurmConf)):
    ConfigStore.instance().store(group="hydra/launcher", name=name, node=node, provider="qdexp")


class CellLauncher(Launcher):
    """Takes cells from our sweeper, in place of overrides."""

    def __init__(self, dry: bool = False) -> None:
        self.dry = dry

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.config = config

    def launch(self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[JobReturn]:
        raise UserError(f"hydra/launcher={self.config.hydra.runtime.choices['hydra/launcher']}: only with hydra/sweeper=qdexp")

    def place(self) -> AbstractContextManager[None]:
        """Cells are made for the machines on which they are to run."""
        return nullcontext()

    def launch_cells(self, cells: "Sequence[Cell]") -> Any:
        from qdexp.sweep import launch  # torch is loaded here, not for --help

        return launch.dry(cells, self.room(launch, cells)) if self.dry else self.run(launch, cells)

    def room(self, launch: ModuleType, cells: "Sequence[Cell]") -> Any:
        """Return the memory that the cells will have, as a ``qdexp.footprint.places.Place``."""
        return launch.Here(jobs=1)

    @abstractmethod
    def run(self, launch: ModuleType, cells: "Sequence[Cell]") -> Any:
        """Runs the cells by a function of the module ``launch``."""


class SequentialLauncher(CellLauncher):
    def run(self, launch: ModuleType, cells: "Sequence[Cell]") -> Any:
        return launch.sequential(cells)


class LocalLauncher(CellLauncher):
    def __init__(self, jobs: int | None, jobs_per_gpu: int, dry: bool = False) -> None:
        super().__init__(dry)
        self.jobs, self.jobs_per_gpu = jobs, jobs_per_gpu

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        for name in ("jobs", "jobs_per_gpu"):  # raised by the constructor, it would come wrapped in Hydra's own words
            if (value := getattr(self, name)) is not None and value < 1:
                raise UserError(f"hydra.launcher.{name}={value}: choose at least 1")
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def room(self, launch: ModuleType, cells: "Sequence[Cell]") -> Any:
        return launch.shared(cells, self.jobs, self.jobs_per_gpu)

    def run(self, launch: ModuleType, cells: "Sequence[Cell]") -> Any:
        return launch.local(cells, self.jobs, self.jobs_per_gpu)


class SlurmLauncher(CellLauncher):
    def place(self) -> AbstractContextManager[None]:
        from qdexp.sweep.launch import planned_for

        return planned_for(self.config.cluster)

    def room(self, launch: ModuleType, cells: "Sequence[Cell]") -> Any:
        return launch.OnCluster()

    def run(self, launch: ModuleType, cells: "Sequence[Cell]") -> Any:
        return launch.slurm(cells)
