"""What a command line gives the axes, checked before Hydra composes it, which takes these mistakes, or ends in a traceback."""

from collections.abc import Sequence
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException

from qdexp.errors import UserError
from qdexp.paths import conf_folder

MULTIRUN = ("-m", "--multirun")


def check(arguments: Sequence[str]) -> None:
    """Raises UserError where an axis is given what names no choice, or several values stand where one cell is run."""
    axes = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    sweeps = any(argument in MULTIRUN for argument in arguments)
    for argument in arguments:
        override = _parse(argument)
        if override is None or override.is_delete():
            continue
        key = str(override.key_or_group)
        if override.is_sweep_override() and not sweeps:
            raise UserError(f"{argument}: several values are a sweep; add -m")
        if key in axes:
            for value in _values(override):
                _check_choice(key, value)


def _parse(argument: str) -> Override | None:
    """None where it is none, or none that can be read: Hydra says so."""
    if "=" not in argument or argument.startswith("-"):
        return None
    try:
        return OverridesParser.create().parse_override(argument)
    except HydraException:
        return None


def _values(override: Override) -> list[Any]:
    value = override.value()
    return list(override.sweep_iterator()) if isinstance(value, ChoiceSweep) else [value]


def _check_choice(axis: str, value: Any) -> None:
    if isinstance(value, list):
        raise UserError(f"{axis}={value}: name one; several are a sweep: -m {axis}={','.join(map(str, value))}")
    if isinstance(value, int | float):
        raise UserError(f"{axis}={value}: no name of a choice; python -m qdexp --help lists them")
