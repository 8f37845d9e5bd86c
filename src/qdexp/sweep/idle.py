"""Options that a command names and that change nothing in any of its cells.

Cells share a command line, so what some of them do not read is theirs to ignore: full precision has no calibration. Refused is
what none reads though the record or the key would tell of it, and an axis along which all cells come out equal. What merely
goes unread is said: scripts share their options between commands, too.
"""

from collections.abc import Callable, Sequence
from itertools import groupby

from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.models.describe import description_of
from qdexp.sampling.effects import refuse_idle_options
from qdexp.sampling.sampler import timesteps_of
from qdexp.stages.calibration import chosen_rows

USUAL = "uniform"
"""The strategy that takes all steps by its definition, where it has as many timesteps."""
Point = Sequence[str]
"""The overrides that make a cell."""

_READ: dict[str, tuple[Callable[[Cell], bool], str]] = {
    "recon": (lambda cell: cell.learns, "no cell learns"),
    "calib": (lambda cell: cell.calibrated, "no cell is calibrated"),
    "trajectory": (lambda cell: cell.calibrated, "no cell is calibrated"),
}
"""Groups of options: which quantized cells read them, and what is to be said where none does."""


def check(points: Sequence[Point], cells: Sequence[Cell | None]) -> None:
    """Looks at what a command names; ``cells`` are those of the points, None where one was left out.

    Raises:
        UserError: An option or an axis changes nothing.
    """
    kept = [cell for cell in cells if cell is not None]
    refuse_idle_options((cell.config.model, cell.config.protocol) for cell in kept)
    _refuse_idle_axes([(point, cell) for point, cell in zip(points, cells, strict=True) if cell is not None and cell.quantized])
    quantized = [cell for cell in kept if cell.quantized]
    named = {name: override for point in points for override in point for name in [_name(override)]}
    if quantized and "quant.softmax_bits" in named and not any(map(_attends, quantized)):
        name = quantized[0].config.model.name
        raise UserError(f"{named['quant.softmax_bits']}: does nothing, {name} has no attention; leave it out")
    for name in named.keys() & {"protocol.reference", "protocol.extractor_weights"}:
        if kept and not any(cell.config.protocol.scores for cell in kept):
            raise UserError(f"{named[name]}: not read, since protocol.extractor=none compares with no reference; "
                            f"add protocol=fid5k or protocol.extractor=NAME, or leave it out")  # fmt: skip
    for group, (reads, why) in _READ.items():
        unread = [override for name, override in named.items() if name.split(".")[0] == group]
        if quantized and unread and not any(map(reads, quantized)):
            print(f"note: {' '.join(unread)}: not read, {why}", flush=True)
    if "calib" in named:
        _say_same_rows([cell for cell in quantized if cell.calibrated])


def _refuse_idle_axes(made: Sequence[tuple[Point, Cell]]) -> None:
    """Refuse axes along which no quantized cell changes: full precision is one and the same whatever the others vary. ``seed``
    may be for quantized cells alone."""
    for axis in sorted({_name(override) for point, _ in made for override in point} - {"seed"}):
        values = sorted({override for point, _ in made for override in point if _name(override) == axis})

        def others(entry: tuple[Point, Cell], axis: str = axis) -> list[str]:
            return sorted(override for override in entry[0] if _name(override) != axis)

        lines = [[cell.key for _, cell in line] for _, line in groupby(sorted(made, key=others), others)]
        compared = [keys for keys in lines if len(keys) > 1]
        if compared and all(len(set(keys)) == 1 for keys in compared):
            named = " ".join(value.removeprefix("++") for value in values)
            raise UserError(f"{named}: all cells come out equal, none depends on {axis}; leave the axis out")


def _say_same_rows(cells: Sequence[Cell]) -> None:
    """Strategies that choose the same rows have keys and results of their own, and these are equal."""
    chosen: dict[str, dict[str, Cell]] = {}
    for cell in cells:
        read = (cell.config.model.name, cell.config.trajectory, cell.config.protocol, chosen_rows(cell.config))
        chosen.setdefault(str(read), {}).setdefault(cell.config.calib.name, cell)
    for same in chosen.values():
        config = next(iter(same.values())).config
        steps = len(timesteps_of(config.model, config.protocol))
        every = {position for position, _ in chosen_rows(config)} == set(range(steps)) and config.calib.timesteps == steps
        why = f"all {steps} of {steps} steps: the strategy does not matter" if every else "the same samples of the same steps"
        if len(same) > 1 or (every and USUAL not in same):
            equal = ", and their results are equal" if len(same) > 1 else ""
            print(f"note: calib={','.join(same)}: {why}{equal}", flush=True)


def _name(override: str) -> str:
    return override.partition("=")[0].lstrip("+~")


def _attends(cell: Cell) -> bool:
    description = description_of(cell.config.model)
    return description is None or bool(description.sites)
