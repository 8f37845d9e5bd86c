"""A command line before Hydra composes it: mistakes that Hydra would take, or end in a traceback, are refused, and what follows
from one option for another is added."""

from collections.abc import Iterator, Sequence
from functools import cache
from importlib.resources import files
from importlib.resources.abc import Traversable
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override
from hydra.errors import HydraException
from omegaconf import OmegaConf

from qdexp.config.checks import RANDOM
from qdexp.errors import UserError
from qdexp.paths import conf_folder

MULTIRUN = ("-m", "--multirun")
STEPS = "quantizer.steps."
OPEN = (STEPS, "backend.")
"""What options begin with that may be new to Hydra: the class that they are of says which there are."""
RENAMED = {
    "quantizer.weight.range": "quantizer.steps.weights.range",
    "quantizer.weight": "quant.weight",
    "quantizer.act.range": "quantizer.steps.act.range",
    "quantizer.act.rows": "quantizer.steps.act.rows",
    "quantizer.act.learned": "quantizer.steps.scales (quantizer.steps.scales=null learns none)",
    "quantizer.act": "quant.act",
    "quantizer.rounding": "quantizer.steps.weights._target_ (a class of qdexp.methods, or your own)",
    "quantizer.split": "quantizer.steps.split.scope",
    "quantizer.file": "quantizer.steps.released.file",
    "cluster.stages.rounding": "cluster.stages.weights",
    "cluster.stages.evaluation": "cluster.stages.record",
    "cluster.stages.quantization": "cluster.stages.act and cluster.stages.scales",
}
"""What options were called before methods were lists of steps, and metrics objects."""
LISTS = ("metric",)
"""Groups of which several are taken at once: metric=[standard,mine]."""
MEASURES = ("protocol", "protocol.extractor", "protocol.reference")
"""Who names one of these has chosen how to measure."""


def check(arguments: Sequence[str]) -> None:
    """Checks the arguments of a command.

    Raises:
        UserError: An axis is given what names no choice, several values stand where one cell is run, or a folder of the
            user's own configs holds a file that is called like one of ours.
    """
    for folder in _own_folders(arguments):
        _check_names(folder)
    axes = {path.name for path in conf_folder().iterdir() if path.is_dir()}
    sweeps = any(argument in MULTIRUN for argument in arguments)
    for argument in arguments:
        override = _parse(argument)
        if override is None or override.is_delete():
            continue
        key = str(override.key_or_group)
        if (old := next((old for old in RENAMED if key == old or key.startswith(f"{old}.")), None)) is not None:
            raise UserError(f"{argument}: {old} is called {RENAMED[old]}{key[len(old) :]} now")
        if override.is_sweep_override() and not sweeps:
            raise UserError(f"{argument}: several values are a sweep; add -m")
        if key in axes:
            for value in _values(override):
                for one in value if key in LISTS and isinstance(value, list) else [value]:
                    _check_choice(key, one)


def arranged(arguments: Sequence[str]) -> list[str]:
    """A command line as Hydra takes it: what stands behind ``-m`` it would not know, and what one cell lacks is added."""
    flags = [argument for argument in arguments if argument in MULTIRUN]
    rest = [argument for argument in arguments if argument not in MULTIRUN]
    return [*flags, *_forced(rest)] if flags else completed(rest)


def completed(arguments: Sequence[str]) -> list[str]:
    """The options of one cell. Random weights are rehearsed under the protocol that is made for them, unless one is named."""
    arguments = _forced(arguments)
    parsed = [override for override in map(_parse, arguments) if override is not None]
    named = {str(override.key_or_group) for override in parsed}
    random = any(override.key_or_group == "model.weights" and override.value() == RANDOM for override in parsed)
    return [*arguments, *(["protocol=rehearsal"] if random and not named & set(MEASURES) else [])]


def _forced(arguments: Sequence[str]) -> list[str]:
    """Whether steps, backends and their options are possible is checked where they are made."""
    return [f"++{argument}" if argument.startswith(OPEN) else argument for argument in arguments]


@cache
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


def _own_folders(arguments: Sequence[str]) -> Iterator[Traversable]:
    """Where else Hydra will look for configs, as far as it can."""
    for flag, folder in pairwise(arguments):
        if flag in ("--config-dir", "-cd"):
            yield Path(folder)
    for argument in arguments:
        if argument.startswith("--config-dir="):
            yield Path(argument.partition("=")[2])
        override = _parse(argument)
        if override is None or override.key_or_group != "hydra.searchpath" or override.is_delete():
            continue
        given = override.value()
        for place in OmegaConf.create(given if isinstance(given, list) else [given]):  # ${oc.env:...} is looked up
            scheme, _, name = str(place).rpartition("://")
            if scheme in ("", "file"):
                yield Path(name)
            elif scheme == "pkg" and (package := _package(name)) is not None:
                yield package


def _package(name: str) -> Traversable | None:
    """The folder ``a.b/c`` or ``a.b.c`` of a package; None where there is none: Hydra says so."""
    try:
        return files(name.replace("/", "."))
    except (ImportError, TypeError, ValueError):
        return None


def _check_names(folder: Traversable) -> None:
    """UserError where a file would be ignored, since one of ours has its name and comes first. An equal copy may stay."""
    ours = conf_folder()
    hidden = [(folder.joinpath(str(own.relative_to(ours))), own) for own in sorted(ours.rglob("*.yaml"))]
    hidden = [(file, own) for file, own in hidden if file.is_file() and file.read_bytes() != own.read_bytes()]
    if hidden:
        (file, own), others = hidden[0], len(hidden) - 1
        more = f"; so would {others} more" if others else ""
        raise UserError(f"hydra.searchpath: {file} would be ignored, since {own} has its name{more}; rename it")
