"""A command line before Hydra composes it: mistakes that Hydra would take, or end in a traceback, are refused, and what follows
from one option for another is added."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from functools import cache
from typing import Any

from hydra.conf import HydraConf
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import ChoiceSweep, Override, OverrideType, Quote, QuotedString
from hydra.errors import HydraException

from qdexp import searchpath
from qdexp.config import Config
from qdexp.config.checks import RANDOM, schema_of, schema_of_option
from qdexp.errors import UserError, did_you_mean
from qdexp.searchpath import choices, own_folders

MULTIRUN = ("-m", "--multirun")
FLAGS = (*MULTIRUN, "-h", "--help", "--hydra-help", "--version", "--resolve", "-r", "--run", "-sc", "--shell-completion")
INFO = ("-i", "--info")
VALUED = ("-c", "--cfg", "-p", "--package", "-cp", "--config-path", "-cn", "--config-name", "-cd", "--config-dir",
          "--experimental-rerun")  # fmt: skip
"""Hydra's flags; those that a value may follow, and those that one follows."""
STEPS = "quantizer.steps."
OPEN = (STEPS, "backend.")
"""The beginnings of options that may be new to Hydra: the class that they are of says which there are."""
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
    "recon.cache_gb": "memory.host_gb (on a GPU memory.device_gb too)",
    "cluster.stages.rounding": "cluster.stages.weights",
    "cluster.stages.evaluation": "cluster.stages.record",
    "cluster.stages.quantization": "cluster.stages.act and cluster.stages.scales",
}
"""The names of options before methods were lists of steps, and metrics objects."""
HYDRA = "hydra/"
"""The beginning of the names of Hydra's own groups."""
LISTS = ("metric",)
"""Groups of which several are taken at once: metric=[standard,mine]."""
MEASURES = ("protocol", "protocol.extractor", "protocol.reference")
"""The options that choose how to measure."""


def check(arguments: Sequence[str]) -> None:
    """Checks the arguments of a command.

    Raises:
        UserError: An argument is none, or cannot be read; an option or a choice does not exist, or is given several values
            where one cell is run; a folder of the user's own configs is not there, or hides a file.
    """
    given = list(_words(arguments))
    overrides = {argument: override for argument in given if (override := _parse(argument)) is not None}
    own, axes = own_folders(arguments, list(overrides.values())), searchpath.axes()
    known = {axis: choices(axis, own) for axis in axes}
    sweeps = any(argument in MULTIRUN for argument in arguments)
    _refuse_torn(given)
    seen: dict[str, str] = {}
    for argument in given:
        override = overrides.get(argument)
        if override is None:
            raise UserError(_what(argument, known))
        key = str(override.key_or_group)
        if override.is_delete():
            if key in axes or key.startswith(HYDRA):
                raise UserError(f"{argument}: a cell needs a choice along each axis; name another, {key}=NAME")
            continue
        if (old := next((old for old in RENAMED if key == old or key.startswith(f"{old}.")), None)) is not None:
            raise UserError(f"{argument}: {old} is called {RENAMED[old]}{key[len(old) :]} now")
        if override.is_sweep_override() and not sweeps:
            raise UserError(f"{argument}: several values are a sweep; add -m")
        if key in axes:
            if key in seen:
                raise UserError(f"{seen[key]} {argument}: {key} is given twice; name one choice, or several by {key}=ONE,OTHER")
            seen[key] = argument
            for value in _values(override):
                for one in value if key in LISTS and isinstance(value, list) else [value]:
                    _check_choice(key, one)
        elif key.startswith(HYDRA) and not all(isinstance(value, str) for value in _values(override)):
            raise UserError(f"{argument}: name a choice; python -m qdexp --hydra-help lists them")
        elif override.type == OverrideType.CHANGE and _schema(key).get("type") == "string" and "=~" in argument:
            raise UserError(f"{argument}: nothing expands ~ there; give the whole path, or $HOME")


def _words(arguments: Sequence[str]) -> Iterator[str]:
    """The arguments without flags and their values. UserError where there is no such flag."""
    for before, argument in zip(["", *arguments], arguments, strict=False):
        flag = argument.partition("=")[0]
        if before in VALUED or (before in INFO and "=" not in argument):
            continue
        if not argument.startswith("-"):
            yield argument
        elif flag not in (*FLAGS, *INFO, *VALUED):
            name = flag.lstrip("-").replace("-", "_")
            if name in schema_of(Config)["properties"]:
                raise UserError(f"{argument}: options have no dashes here: {name}=VALUE")
            meant = did_you_mean(flag, [*FLAGS, *INFO, *VALUED])
            raise UserError(f"{argument}: there is no such flag{meant}; python -m qdexp --help lists the options")


def _refuse_torn(given: Sequence[str]) -> None:
    """UserError where a shell has parted what belongs together: ``quant=w8a8, w4a8``."""
    pieces: list[list[str]] = []
    for one in given:
        last = pieces[-1][-1] if pieces else ""
        torn = pieces and (one.startswith((",", "=")) or (last.endswith((",", "=")) and "=" not in one))
        if torn:
            pieces[-1].append(one)
        else:
            pieces.append([one])
    for piece in pieces:
        whole = "".join(piece)
        if len(piece) > 1:
            raise UserError(f"{' '.join(piece)}: no space beside a comma or an equals sign: {whole}")
        if whole.endswith(","):
            raise UserError(f"{whole}: ends in a comma; leave it out: {whole.rstrip(',')}")


def _what(argument: str, known: Mapping[str, Sequence[str]]) -> str:
    """The message for an argument that is no ``KEY=VALUE``; ``known``: the choices of each axis."""
    key, equals, _ = argument.partition("=")
    if equals and key:
        try:
            OverridesParser.create().parse_override(argument)
        except HydraException as error:
            why = str(error).partition(" expecting ")[0]
            return f"{argument}: cannot be read ({why}); texts with such signs stand in quotes: \"{key}='TEXT'\""
    named = [f"{axis}={argument}" for axis in sorted(known) if argument in known[axis]]
    if named:
        return f"{argument}: name its axis too: {' or '.join(named)}"
    if argument in known:
        return f"{argument}: give a choice, {argument}=NAME; there are {', '.join(known[argument])}"
    told = [f"{axis}={choice}" for axis in sorted(known) for choice in known[axis]]
    meant = did_you_mean(argument, [choice.partition("=")[2] for choice in told], told)
    return f"{argument or repr(argument)}: is no option{meant}; give KEY=VALUE, python -m qdexp --help lists them"


def _schema(key: str) -> Mapping[str, Any]:
    """The schema of an option that chooses no file. UserError where there is none of this name."""
    if key.startswith("hydra."):
        name, known = key.split(".")[1], [field.name for field in fields(HydraConf)]
        if name not in known:
            raise UserError(
                f"{key}: there is no such option{did_you_mean(name, known)}; python -m qdexp --hydra-help lists them"
            )
    if key.startswith(("hydra.", *OPEN)) or "/" in key or "@" in key or key in searchpath.axes():
        return {}
    return schema_of_option(Config, key)


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
    """Return the arguments as Hydra is to read them. Steps and their options may be new to it: whether they are possible is
    checked where the steps are made. What is text is quoted where Hydra would read a number (2026_11_28 is 20261128), or
    nothing."""
    return [f"++{argument}" if argument.startswith(OPEN) else _quoted(argument) for argument in arguments]


@cache  # a sweep of hundreds of cells asks for the same few over and over
def _quoted(argument: str) -> str:
    key, equals, text = argument.partition("=")
    try:
        is_text = bool(equals) and _schema(key.lstrip("+")).get("type") == "string"
    except UserError:
        return argument  # is said elsewhere
    override = _read(argument)
    if not is_text or (override is not None and type(override.value()) not in (bool, int, float)):
        return argument
    return f"{key}={QuotedString(text, Quote.single).with_quotes()}"


def _parse(argument: str) -> Override | None:
    """Parse one override; None where the argument is none, or cannot be read."""
    return None if argument.startswith(("-", "=")) else _read(_quoted(argument) if "=" in argument else argument)


@cache
def _read(argument: str) -> Override | None:
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
    if value is None:
        raise UserError(f"{axis}=null: name a choice, or leave it out")
