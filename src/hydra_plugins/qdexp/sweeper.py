"""The sweeper of qdexp: the grid of the axes that are named, or the ablation of methods where none is.

Hydra's basic sweeper cannot do this: its default parameters are merged with an experiment's axes, and it starts the first cell
before it has looked at the last. This one composes and checks every cell first, drops cells that come out equal, and only then
hands them to the launcher.
"""

from contextlib import nullcontext
from dataclasses import dataclass, field
from itertools import product
from typing import Any

from hydra.core.config_loader import ConfigLoader
from hydra.core.config_store import ConfigStore
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.core.plugins import Plugins
from hydra.plugins.launcher import Launcher
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from hydra_plugins.qdexp.launchers import CellLauncher
from qdexp import permanent
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.overrides import completed
from qdexp.sweep.naming import named


@dataclass
class LadderSweeperConf:
    _target_: str = "hydra_plugins.qdexp.sweeper.LadderSweeper"
    ladder: list[str] = field(default_factory=list)
    """Methods that a sweep runs where the command names no method, quantizer, calib or experiment."""
    params: dict[str, str] = field(default_factory=dict)
    """Axes of a named study: what its ``experiment`` file sweeps over, unless the command says otherwise."""
    cells: list[str] = field(default_factory=list)
    """Cells one by one, each the overrides of it ("method=ptq quant=w8a8"), in place of the ablation or a study's axes."""
    exclude: list[str] = field(default_factory=list)
    """Points of the grid that are left out: those that have all of an entry's overrides ("method=ptq quant=w4a4")."""


ConfigStore.instance().store(group="hydra/sweeper", name="qdexp", node=LadderSweeperConf, provider="qdexp")


def grid(arguments: list[str], loader: ConfigLoader | None = None) -> list[list[str]]:
    """All combinations of the values that ``arguments`` (Hydra overrides) sweep over, the last axis moving fastest.

    ``loader`` knows what ``glob(*)`` stands for.
    """
    axes = []
    for override in OverridesParser.create(loader).parse_overrides(arguments):
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

    def __init__(self, ladder: list[str], params: dict[str, str], cells: list[str], exclude: list[str]) -> None:
        self.ladder, self.params = list(ladder), dict(params)
        self.cells, self.exclude = [cell.split() for cell in cells], [point.split() for point in exclude]
        self.launcher: Launcher | None = None

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        self.hydra_context, self.config = hydra_context, config
        self.launcher = Plugins.instance().instantiate_launcher(
            hydra_context=hydra_context, task_function=task_function, config=config
        )

    def points(self, given: list[str]) -> list[list[str]]:
        """The overrides of every cell: the grid of the axes that are named, or of each cell of the list with those."""
        several = [argument for argument in given if axis(argument) == "experiment" and "," in argument]
        if several:
            raise UserError(f"{several[0]}: a study names its own axes; run one experiment at a time")
        chosen = [[*cell, *given] for cell in self.cells] or [self.arguments(given)]
        for cell in self.cells:
            twice = {axis(override) for override in cell} & {axis(argument) for argument in given}
            if twice:
                raise UserError(f"hydra.sweeper.cells={' '.join(cell)}: {', '.join(sorted(twice))} is named beside the list "
                                f"too; leave it out there")  # fmt: skip
        points = [
            point
            for arguments in chosen
            for point in grid(arguments, self.hydra_context.config_loader if self.hydra_context else None)
        ]
        for left_out in self.exclude:
            kept = [point for point in points if not set(left_out) <= set(point)]
            if len(kept) == len(points):
                raise UserError(f"hydra.sweeper.exclude={' '.join(left_out)}: no cell of the sweep has these; fix or remove it")
            points = kept
        if not points:
            raise UserError("hydra.sweeper.exclude: leaves no cell; exclude less")
        return [completed(point) for point in points]

    def arguments(self, given: list[str]) -> list[str]:
        """The overrides of a sweep without a list: those given, a study's axes, and the ablation where nothing replaces it."""
        named = {axis(argument) for argument in given}
        chosen = [f"{name}={values}" for name, values in self.params.items() if name not in named]
        if self.climbs(given):
            chosen.append(f"method={','.join(self.ladder)}")
        return chosen + given

    def climbs(self, given: list[str]) -> bool:
        """Whether the ablation is run: nothing replaces it."""
        named = {axis(argument) for argument in given}
        return not (named | set(self.params)) & {"method", "quantizer", "calib", "experiment"}

    def sweep(self, arguments: list[str]) -> Any:
        assert self.launcher is not None and self.hydra_context is not None and self.config is not None
        loader, ours = self.hydra_context.config_loader, self.launcher if isinstance(self.launcher, CellLauncher) else None
        config = self.config
        points = self.points(arguments)
        first = loader.load_sweep_config(config, points[0])
        Config.early(OmegaConf.masked_copy(first, [str(key) for key in first if key != "hydra"]))  # before torch is loaded
        dry = ours is not None and ours.dry
        with nullcontext(str(config.sweep)) if dry else named(first) as name:  # once: ${now:...} would name every cell anew
            said = f"sweep={QuotedString(name, Quote.single).with_quotes()}"
            return self._run([[*point, said] for point in points], arguments, ours)

    def _run(self, points: list[list[str]], arguments: list[str], ours: CellLauncher | None) -> Any:
        assert self.launcher is not None and self.hydra_context is not None and self.config is not None
        loader, config = self.hydra_context.config_loader, self.config
        # late imports: Hydra loads every plugin before it prints --help
        with permanent.imports():
            from qdexp.sweep.freeze import Composer, distinct
            from qdexp.sweep.results import announce, conclude

        composer = Composer(lambda overrides: loader.load_sweep_config(config, overrides))
        with nullcontext() if ours is None else ours.place():
            chosen = bool({axis(argument) for argument in arguments} & {"method", "quantizer", "calib"})
            kept = distinct(points, (composer.config(point) for point in points), ladder=not (self.cells or chosen))
            cells = [cell for _, cell in kept]
            if ours is not None:
                return ours.launch_cells(cells)
        announce(cells)
        return conclude(cells, self.launcher.launch([points[index] for index, _ in kept], initial_job_idx=0))
