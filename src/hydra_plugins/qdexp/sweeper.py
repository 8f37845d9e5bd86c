"""The sweeper of qdexp: the grid of the axes that are named, or the ladder of methods where none is.

Hydra's basic sweeper cannot do this: its default parameters are merged with an experiment's axes, and it starts the first cell
before it has looked at the last. This one composes and checks every cell first, drops cells that come out equal, and only then
hands them to the launcher.
"""

from dataclasses import dataclass, field
from itertools import product
from typing import Any

from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig

from qdexp.errors import UserError


@dataclass
class LadderSweeperConf:
    _target_: str = "hydra_plugins.qdexp.sweeper.LadderSweeper"
    ladder: list[str] = field(default_factory=list)
    """Methods that a sweep runs where the command names no method, quantizer, calib or experiment."""
    params: dict[str, str] = field(default_factory=dict)
    """Axes of a named study: what its ``experiment`` file sweeps over, unless the command says otherwise."""


ConfigStore.instance().store(group="hydra/sweeper", name="qdexp", node=LadderSweeperConf, provider="qdexp")


def grid(arguments: list[str]) -> list[list[str]]:
    """All combinations of the values that ``arguments`` (Hydra overrides) sweep over, the last axis moving fastest."""
    axes = []
    for override in OverridesParser.create().parse_overrides(arguments):
        if override.is_sweep_override():
            name = override.get_key_element()
            axes.append([f"{name}={value}" for value in override.sweep_string_iterator()])
        else:
            axes.append([str(override.input_line)])
    return [list(cell) for cell in product(*axes)]


def axis(argument: str) -> str:
    """The axis that an override names: ``+experiment=bits`` names ``experiment``."""
    return argument.partition("=")[0].lstrip("+~")


class LadderSweeper(Sweeper):
    """See the module's docstring; ``ladder`` and ``params`` as in LadderSweeperConf."""

    def __init__(self, ladder: list[str], params: dict[str, str]) -> None:
        self.ladder, self.params = list(ladder), dict(params)
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def arguments(self, given: list[str]) -> list[str]:
        """The overrides of the sweep: those given, a study's own axes, and the ladder where nothing replaces it."""
        named = {axis(argument) for argument in given}
        several = [argument for argument in given if axis(argument) == "experiment" and "," in argument]
        if several:
            raise UserError(f"{several[0]}: a study names its own axes; run one experiment at a time")
        chosen = [f"{name}={values}" for name, values in self.params.items() if name not in named]
        if self.climbs(given):
            chosen.append(f"method={','.join(self.ladder)}")
        return chosen + given

    def climbs(self, given: list[str]) -> bool:
        """Whether the ladder is run: nothing replaces it."""
        named = {axis(argument) for argument in given}
        return not (named | set(self.params)) & {"method", "quantizer", "calib", "experiment"}

    def sweep(self, arguments: list[str]) -> Any:
        # late imports: Hydra loads every plugin before it prints --help
        from qdexp.sweep import announce, conclude, distinct

        assert self.launcher is not None and self.hydra_context is not None and self.config is not None
        compose = self.hydra_context.config_loader.load_sweep_config
        name = f"sweep={self.config.sweep}"  # read once: ${now:...} would name every cell anew
        cells = [[*cell, name] for cell in grid(self.arguments(arguments))]
        kept = distinct([compose(self.config, overrides) for overrides in cells], self.climbs(arguments))
        announce([cell for _, cell in kept])
        returns = self.launcher.launch([cells[index] for index, _ in kept], initial_job_idx=0)
        return conclude([cell for _, cell in kept], returns)
