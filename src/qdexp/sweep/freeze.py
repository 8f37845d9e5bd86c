"""Freezing of configs: from overrides to checked configs, and back from what was frozen.

Hydra takes a good tenth of a second to compose one; what is equal is reused.
"""

import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, is_dataclass, replace
from functools import cache, lru_cache
from pathlib import Path
from typing import Any, cast

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, OverrideType
from omegaconf import DictConfig, OmegaConf, open_dict

from qdexp import files
from qdexp.cell import Cell, Passed, preflight
from qdexp.config import Config
from qdexp.config.checks import checked
from qdexp.errors import NothingToSplitError, UserError, did_you_mean
from qdexp.footprint.batches import settled
from qdexp.layout import Layout
from qdexp.methods.recipe import BEFORE, SLOTS
from qdexp.models import folder, titles
from qdexp.overrides import OPEN, STEPS
from qdexp.record import flat
from qdexp.report.rows import told_apart
from qdexp.sweep import idle
from qdexp.sweep.jobs import Job
from qdexp.sweep.manifest import CellEntry, Manifest

PARTS = ("quantizer", "calib")
"""The groups that a method fixes."""
RANGES: dict[str, dict[str, Any]] = {
    "min_max": {"_target_": "qdexp.quant.ranges.MinMax"},
    "norm_search": {"_target_": "qdexp.quant.ranges.NormSearch", "p": 2.4},
    "mse": {"_target_": "qdexp.quant.ranges.NormSearch", "p": 2.0},
    "percentile": {"_target_": "qdexp.quant.percentile.Percentile", "q": 99.9},
}
"""The names of the steps' range estimators on a command line: ``quantizer.steps.act.range=percentile``."""
KEPT = 64
"""Frozen configs that a composer keeps: axes that follow one another quickly have as many values."""
_TARGET = "_target_"
_RANGE = "range"


def freeze(cfg: DictConfig, overrides: Sequence[str] | None = None) -> Config:
    """The checked config of a composed cell; ``overrides``: those that made it, where Hydra does not know them. Its
    method is named after its parts where the command named only those.

    Raises UserError where a named quantizer or calib contradicts a named method.
    """
    return _Composed.of(cfg).frozen(cfg.hydra.overrides.task if overrides is None else overrides)


@dataclass(frozen=True)
class _Composed:
    """A config that Hydra has composed: our part of it, the choices of the axes, the folders that these are from."""

    ours: DictConfig
    choices: DictConfig
    folders: Sequence[Path]

    @classmethod
    def of(cls, cfg: DictConfig) -> "_Composed":
        ours = OmegaConf.masked_copy(cfg, [str(key) for key in cfg if key != "hydra"])
        folders = [Path(source.path) for source in cfg.hydra.runtime.config_sources if source.schema == "file"]
        return cls(ours, cfg.hydra.runtime.choices, folders)

    @property
    def bound(self) -> frozenset[str]:
        """The groups, and all words of interpolations: names that these may read."""
        leaves = flat(cast(dict[str, Any], OmegaConf.to_container(self.ours)))
        read = [str(value) for value in leaves.values() if "${" in str(value)]
        return frozenset([*self.choices, *re.findall(r"\w+", " ".join(read))])

    def frozen(self, overrides: Sequence[str]) -> Config:
        """Freeze with these overrides as ``freeze`` does; what is composed stays as it is."""
        named = {name.lstrip("+"): value for name, _, value in (override.partition("=") for override in overrides)}
        parts = [part for part in PARTS if part in named]
        of_steps = [_parse(override) for override in overrides if override.lstrip("+").startswith(STEPS)]
        cfg = self.ours.copy() if of_steps or (parts and "method" not in named) else self.ours
        _exchange_steps(cfg, of_steps)
        if "method" in named:
            for group, fixed in self._fixed_by(named["method"]).items():
                if named.get(group, fixed) != fixed:
                    raise UserError(f"{group}={named[group]}: method={named['method']} fixes {group}={fixed}; "
                                    f"leave one of the two out")  # fmt: skip
        elif parts:
            with open_dict(cfg):
                cfg.method = f"{self.choices.quantizer}-{self.choices.calib}".replace("/", ".")  # of files in folders
        return settled(folder.filled(cfg))

    def _fixed_by(self, method: str) -> dict[str, str]:
        """The quantizer and calib that a method's file overrides, in our config folder or in one of the user's."""
        paths = [folder / "method" / f"{method}.yaml" for folder in self.folders]
        found = next((_loaded(path) for path in paths if path.is_file()), {})
        entries = [entry for entry in found.get("defaults", []) if isinstance(entry, dict)]
        return {str(group).removeprefix("override").strip(" /"): choice for entry in entries for group, choice in entry.items()}


@cache
def _loaded(path: Path) -> dict[str, Any]:
    found = OmegaConf.to_container(OmegaConf.load(path))
    assert isinstance(found, dict)
    return {str(key): value for key, value in found.items()}


def _exchange_steps(cfg: DictConfig, overrides: Sequence[Override]) -> None:
    """A step whose class is named on the command line has the options that are named there, and its place, and so has a range
    estimator in it; Hydra alone would keep those of what they replace. Where there is no step at all the options of one are
    left out: full precision is one and the same whatever the others vary."""
    named: dict[str, dict[str, Any]] = {}
    for override in overrides:
        slot, _, option = str(override.key_or_group).removeprefix(STEPS).partition(".")
        if override.type not in (OverrideType.CHANGE, OverrideType.ADD, OverrideType.FORCE_ADD):
            continue
        value = override.value()
        named.setdefault(slot, {}).update({option: value} if option else value if isinstance(value, dict) else {})
    if cfg.quantizer.steps is None:
        return  # said when the config is made
    for slot, options in named.items():
        if _TARGET in options:
            place = {} if BEFORE in options or (old := cfg.quantizer.steps.get(slot)) is None else {BEFORE: old.get(BEFORE)}
            node = OmegaConf.create({name: value for name, value in place.items() if value is not None})
            for name, value in options.items():
                OmegaConf.update(node, name, value)
            with open_dict(cfg):
                cfg.quantizer.steps[slot] = node
        step = cfg.quantizer.steps.get(slot)
        if slot in SLOTS and isinstance(step, DictConfig) and (estimator := _estimator(slot, options)) is not None:
            with open_dict(cfg):
                step[_RANGE] = estimator
    if all(node is None or (isinstance(node, DictConfig) and _TARGET not in node) for node in cfg.quantizer.steps.values()):
        for slot in named:
            cfg.quantizer.steps[slot] = None


def _estimator(slot: str, options: Mapping[str, Any]) -> dict[str, Any] | None:
    """The range estimator that the options of a step name, by a word or its class, with what they say of it; None where they
    name none. UserError where there is no such word."""
    given, prefix = options.get(_RANGE), f"{_RANGE}."
    said = {name.removeprefix(prefix): value for name, value in options.items() if name.startswith(prefix)}
    if isinstance(given, str):
        if given not in RANGES:
            raise UserError(f"{STEPS}{slot}.{_RANGE}={given}: there is no such estimator{did_you_mean(given, list(RANGES))}; "
                            f"there are {', '.join(RANGES)}, or name the class of one as _target_")  # fmt: skip
        return RANGES[given] | said
    named = {**(given if isinstance(given, dict) else {}), **said}
    return named if _TARGET in named else None


@dataclass(frozen=True)
class _Frozen:
    """The config of a cell, also as plain values; ``bound``: names that are more than values of their own, since they choose
    files, or others are taken from them."""

    config: Config
    plain: dict[str, Any]
    bound: frozenset[str]


class Composer:
    """Freezes cell after cell; what cells share is composed and checked once. Those that differ in single values alone share
    what Hydra has composed, and those that differ in values that stand alone, like a seed, all the rest of the config."""

    def __init__(self, compose: Callable[[list[str]], DictConfig]) -> None:
        self._compose, self._composed = compose, dict[tuple[str, ...], _Composed]()
        self._parts: dict[str, Any] = {}
        self._frozen = lru_cache(KEPT)(self._freeze)

    def config(self, overrides: Sequence[str]) -> Config:
        """Make a config as ``freeze`` does, with parts as ``share`` says."""
        alone = {str(one.key_or_group): (text, one.value()) for text in overrides if _is_alone(one := _parse(text))}
        try:
            others = self._frozen(tuple(text for text in overrides if text not in {own for own, _ in alone.values()}))
            if alone and not others.bound & alone.keys():
                values = checked(Config, others.plain | {name: value for name, (_, value) in alone.items()})
                return replace(others.config, **{name: getattr(values, name) for name in alone})
        except UserError:
            pass  # the whole tells of all mistakes at once
        return self._frozen(tuple(overrides)).config

    def _freeze(self, overrides: tuple[str, ...]) -> _Frozen:
        parsed = {override: _parse(override) for override in overrides}
        values = {str(one.key_or_group): one.value() for one in parsed.values() if _is_value(one)}
        rest = [override for override, one in parsed.items() if not _is_value(one)]
        shared = (*rest, *values)  # the names of the values too: Hydra has found each to exist
        if shared not in self._composed:
            self._composed[shared] = _Composed.of(self._compose(list(overrides)))
        composed = self._composed[shared]
        for key, value in values.items():  # every cell of these sets them all, so none is left over from the last
            OmegaConf.update(composed.ours, key, value)
        config = share(composed.frozen(overrides), self._parts)
        return _Frozen(config, asdict(config), composed.bound)


def share(config: Config, parts: dict[str, Any]) -> Config:
    """The config, of which the parts that equal one among ``parts`` are that very object: ``preflight`` knows them by it. The
    others are added."""
    own = {f"{one.name}={part!r}": (one.name, part) for one in fields(config) for part in [getattr(config, one.name)]}
    return replace(config, **{name: parts.setdefault(told, part) for told, (name, part) in own.items()})


@cache
def _parse(override: str) -> Override:
    return OverridesParser.create().parse_override(override)


def _is_alone(override: Override) -> bool:
    """Whether the override sets a value of its own, outside of all groups."""
    return _is_value(override) and str(override.key_or_group) in {one.name for one in fields(Config)}


def _is_value(override: Override) -> bool:
    """Whether the override sets one value and chooses no config file: the choice of a group is a word, its name has no dot.

    Mappings are merged with what is there, so they are Hydra's.
    """
    key, value = str(override.key_or_group), override.value()
    simple = isinstance(value, int | float | bool) or (type(value) is str and "." in key)
    known = override.type == OverrideType.CHANGE or (override.type == OverrideType.FORCE_ADD and key.startswith(OPEN))
    return known and override.package is None and simple and not key.startswith("hydra") and not key.endswith(_TARGET)


def distinct(points: Sequence[Sequence[str]], configs: Iterable[Config], ladder: bool = False) -> list[tuple[int, Cell]]:
    """Every cell checked; those that come out equal kept once, with their place in ``configs``, which are those of ``points``.

    A method of the ``ladder`` that splits shortcuts is left out where the model has none: it would be the method before, again.
    Raises UserError where the cells differ in what all cells of a sweep share, or the points in what none of them reads.
    """
    passed: Passed = {}
    shared: dict[str, object] = {}
    cells: dict[str, tuple[int, Cell]] = {}
    made: list[Cell | None] = []
    for index, config in enumerate(titles.told_apart(list(configs))):
        for option in ("out", "sweep", "cluster"):
            if shared.setdefault(option, getattr(config, option)) != getattr(config, option):
                raise UserError(f"{option}: one sweep has one {option}; run a sweep for each")
        try:
            cell = preflight(config, passed)
        except NothingToSplitError as reason:
            if not ladder:
                raise
            made.append(None)
            print(f"left out {config.method} {config.quant.label} of {config.model.name}: {reason}", flush=True)
            continue
        _, known = cells.setdefault(cell.key, (index, cell))
        made.append(cell if cell.quantized else known)  # full precision is there once, whatever the others vary
    idle.check(points, made)
    _entitle([cell for _, cell in cells.values()])
    return list(cells.values())


def _entitle(cells: Sequence[Cell]) -> None:
    """Gives each cell of a sweep a title that no other has, by what tells their records apart later."""
    parts: dict[int, dict[str, Any]] = {}  # what cells share is there once
    told = [{"cell": c.name, "axes": c.axes, "config": _plain(c.config, parts), "files": c.files} for c in cells]
    for cell, title in zip(cells, told_apart([cell.label for cell in cells], told), strict=True):
        cell.title = title


def _plain(config: Config, parts: dict[int, dict[str, Any]]) -> dict[str, Any]:
    """Convert as ``asdict`` does; ``parts``: the results for shared parts, which have to live as long."""
    found = {one.name: getattr(config, one.name) for one in fields(config)}
    for name, part in found.items():
        if is_dataclass(part) and not isinstance(part, type):
            found[name] = parts[id(part)] if id(part) in parts else parts.setdefault(id(part), asdict(part))
    return found


def read_config(place: Job | Manifest, cell: str) -> Config:
    """The frozen config of a cell. Raises UserError where it is truncated."""
    path = Layout(place.out).sweep(place.sweep).config(cell)
    try:
        return checked(Config, files.read_as(path, dict[str, Any]))
    except UserError as error:
        raise UserError(*(f"{path}: {line}; submit the sweep again" for line in error.args)) from error
    except (OSError, ValueError) as error:
        raise UserError(f"{path} is truncated, or no config of a cell ({error}): submit the sweep again") from error


def planned(sweep: Manifest, cell: CellEntry) -> Cell:
    """A cell as it was submitted, whatever the code of this process."""
    return Cell(read_config(sweep, cell.key), cell.key, cell.keys)
