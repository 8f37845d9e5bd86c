"""A cell: one config, the stages that it needs, and the record that they end in."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qdexp import device as devices
from qdexp import files, models, provenance
from qdexp import record as records
from qdexp.backends import choice
from qdexp.config import RANDOM, Config
from qdexp.entries import digest
from qdexp.footprint.room import explained
from qdexp.layout import Layout
from qdexp.methods import recipe
from qdexp.methods.base import NamedStep
from qdexp.metrics.base import FULL_PRECISION, NETWORK
from qdexp.metrics.chosen import check as check_metric
from qdexp.metrics.chosen import metrics_of
from qdexp.models import checks, trial
from qdexp.models.architecture import check_plain
from qdexp.protocol import check as check_protocol
from qdexp.protocol import measured_under, protocol_of
from qdexp.record import Record
from qdexp.sampling.effects import refuse_bounds, refuse_other_paths
from qdexp.sampling.sampler import Sampler
from qdexp.stages import coverage
from qdexp.stages.base import Stage
from qdexp.stages.calibration import chosen_rows
from qdexp.stages.keys import identity, short_hash
from qdexp.stages.wiring import measures_of, stages_of
from qdexp.store import Entry, Store


class Cell:
    """Made from a config that has been checked; ``stages`` are in the order in which they are made.

    What it is, its images and the protocol say; what is measured of these beside, its metrics, can be more tomorrow.
    ``title``: its label; a sweep adds what differs among its cells.

    ``key``, ``keys``: its own and those of the stages as they were planned, of a cell that other code than that of this process
    computes.
    """

    def __init__(self, config: Config, key: str | None = None, keys: Mapping[str, str] | None = None) -> None:
        self.config = config
        self.out = Path(config.out)
        self.device = devices.resolve(config.device)
        self.quantized = not config.full_precision
        self._key, self._keys = key, keys
        self.title = self.label

    @cached_property
    def made(self) -> dict[str, Stage]:
        """The stages that make what is measured, by the roles that they play, in the order in which they are made."""
        return stages_of(self.config)

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """The stages in ``made`` and those that measure: the metrics by their names, and the features that they share."""
        return self.made | measures_of(self.config, self.made)

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key of each stage."""
        return dict(self._keys) if self._keys else {role: stage.key for role, stage in self.stages.items()}

    @cached_property
    def key(self) -> str:
        """Equal for cells that are one and the same whatever they are called, and whatever is measured of them."""
        made = {role: stage.key for role, stage in self.made.items()} if self._key is None else {}
        return self._key or short_hash({"stages": made, "protocol": measured_under(self.config)})

    @cached_property
    def identity(self) -> str:
        """Equal for cells that differ in nothing but their seed: the key that the cell would have with the seed 0."""
        return self.key if self.config.seed == 0 else Cell(replace(self.config, seed=0)).key

    @cached_property
    def files(self) -> dict[str, dict[str, str]]:
        """The path and the digest of each file outside the store that it is made from, by its role."""
        found: dict[str, dict[str, str]] = {}
        for name, stage in self.made.items():
            for role, path in stage.files_outside.items():
                file = {"path": str(path), "sha256": digest(path)}
                if file not in found.values():
                    found[f"{name}.{role}" if role in found else role] = file
        return found

    @cached_property
    def steps(self) -> list[NamedStep]:
        """The steps of the method, in order; empty in full precision."""
        return recipe.steps_of(self.config)

    @property
    def calibrated(self) -> bool:
        """Whether any step reads the calibration set."""
        return "calibration" in self.keys

    @property
    def learns(self) -> bool:
        """Whether any step learns as ``recon`` says."""
        return self.quantized and self.config.quantizer.learns

    @property
    def method(self) -> str:
        return self.config.method if self.quantized else "fp"

    @property
    def label(self) -> str:
        """The cell's name for people."""
        return f"{self.method} {self.config.quant.label}" if self.quantized else self.method

    @property
    def name(self) -> str:
        """The record's file name."""
        return "-".join([self.config.model.name, *self.label.split(), self.key[:10]])

    @property
    def record(self) -> Path:
        """The path of the record, written or not."""
        return Layout(self.out).record(self.name)

    def finished(self) -> Record | None:
        """The record, if it says that the cell succeeded and holds all that is measured of it now."""
        return records.read_complete(self.out, self.name, self.keys)

    def run(self, begin: Callable[[str], object] | None = None) -> Record:
        """Makes what is missing in the store and the record; a failure becomes a record too, and is raised again.

        ``begin`` is called with the name of each stage before it is made or found.
        """
        store = Store(self.out)
        rehearsal = f"  (weights: random; no number of this run says anything of {self.config.model.name})"
        print(f"{self.title}{rehearsal if models.is_rehearsal(self.config.model) else ''}", flush=True)
        stage = "record"
        try:
            entries = {}
            for stage in self.stages:
                if begin is not None:
                    begin(stage)
                entries[stage] = self.stages[stage].make(store)
            with store.alone(f"record-{self.name}"):
                record = self.finished()
                if record is None:
                    new = self._record("complete") | {"costs": {stage: entry.costs for stage, entry in entries.items()}}
                    new |= {"stages": {stage: _made(self.keys[stage], entry) for stage, entry in entries.items()}}
                    new |= self._results({stage: entry.folder for stage, entry in entries.items()})
                    record = records.extended(records.read_complete(self.out, self.name), new)
                    records.write(self.out, record)
        except BrokenPipeError:  # nobody reads what is printed: no failure of the cell
            raise
        except Exception as error:
            told = explained(self.stages[stage], self.config, error) if stage in self.stages else error
            self.fail(describe(stage, told))
            if told is error:
                raise
            raise told from error
        return record

    def fail(self, error: dict[str, str]) -> None:
        """Makes the record of a cell that failed, unless it says so already, or succeeded: what was measured stays measured."""
        known = records.read(self.out, self.name) or {}
        if known.get("status") != "complete" and known.get("error") != error:
            records.write(self.out, self._record("failed") | {"error": error})

    @property
    def axes(self) -> dict[str, Any]:
        """The axes of the cell, in the words of its record."""
        config = self.config
        return {
            "model": config.model.name,
            "weights": RANDOM if models.is_rehearsal(config.model) else "file",
            "method": self.method,
            "quant": config.quant.label if self.quantized else "full",
            "quantizer": config.quantizer.name if self.quantized else "none",
            "calib": config.calib.name if self.calibrated else "none",
            "recon": config.recon.name if self.learns else "none",
            "backend": config.backend[choice.NAME] if self.quantized else "none",
            "weight_bits": config.quant.weight_bits if self.quantized else 32,
            "act_bits": config.quant.act_bits if self.quantized else 32,
            "protocol": config.protocol.name,
            "seed": config.seed,
        }

    def _record(self, status: str) -> Record:
        config = self.config
        seeds = {"seed": config.seed, "noise_seed": config.protocol.noise_seed}
        return {
            "format": records.FORMAT,
            "cell": self.name,
            "status": status,
            "axes": self.axes,
            "config": asdict(config),
            "identity": self.identity,
            "keys": self.keys,
            "files": self.files,
            "protocol": protocol_of(config),
            "provenance": provenance.collect(self.device) | {"seeds": seeds},
        }

    def _results(self, folders: dict[str, Path]) -> Record:
        """Collect the results of the stages, section by section; the full-precision stages that a cell is compared with add
        nothing."""
        results: Record = {}
        for role, folder in folders.items():
            if role != FULL_PRECISION:
                for section, content in self.stages[role].results(folder).items():
                    results.setdefault(section, {}).update(content)
        results["artifacts"] = {name: str(path.relative_to(self.out)) for name, path in results["artifacts"].items()}
        return results


def _made(key: str, entry: Entry) -> dict[str, Any]:
    """A stage's key, the commit of the process that made the result, the keys that it had before it was accepted, and the kinds
    of ``machines`` that made it."""
    accepted = {"accepted": entry.note["accepted"]} if "accepted" in entry.note else {}
    return {"key": key, **entry.note["made"], **accepted, "machines": list(entry.machines)}


def describe(stage: str, error: Exception) -> dict[str, str]:
    """An error as a record keeps it; to be called where it is handled."""
    return {"stage": stage, "type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}


Passed = dict[tuple[object, ...], object]
"""The checks that are done, with what they read."""


def preflight(config: Config, passed: Passed | None = None) -> Cell:
    """The cell, once everything that can be known before any work has been checked. Raises UserError.

    ``passed`` remembers checks from cell to cell: what cells share, as the same object, is checked once.
    """
    model, protocol = config.model, config.protocol
    known: Passed = {} if passed is None else passed

    def check(work: Callable[[], object], *read: object) -> None:
        key = tuple(part if isinstance(part, str | int) else id(part) for part in read)
        if key not in known:
            work()
            known[key] = read  # as long as it is there no other object has its id

    check(lambda: files.require_writable(Path(config.out), f"out={config.out}"), "out", config.out)
    devices.resolve(config.device)
    check(lambda: checks.weights(model), "weights", model)
    check(lambda: identity(model.network), "network", model)  # it can be imported
    check(lambda: refuse_other_paths(model, protocol), "path", protocol, model)
    check(lambda: check_protocol(config), "protocol", protocol, config.trajectory, model)
    cell = Cell(config)
    for one in metrics_of(config):
        network = (config.quant, config.quantizer) if NETWORK in one.metric.needs_of(config) else ()
        check(lambda one=one: check_metric(config, one), one.name, config.metric[one.name], protocol, model, *network)  # type: ignore[misc]
    _ = cell.key, cell.keys, cell.files  # every _target_ can be imported, every file be read
    check(lambda: checks.declarations(model), "declared", model)
    check(lambda: checks.fit(model), "fit", model)
    check(lambda: checks.first_stage(model), "first stage", model)
    check(lambda: trial.check(model), "trial", model)
    check(lambda: checks.finite(model), "finite", model)
    check(lambda: Sampler(model, protocol).rehearse(), "sampler", protocol, model)
    check(lambda: refuse_bounds(model, protocol), "bounds", protocol, model)
    if cell.quantized:
        if cell.calibrated:
            check(lambda: chosen_rows(config), "rows", config.calib, config.trajectory, protocol, config.seed)
        check(lambda: check_plain(model.network), "plain", model)
        read = (model, config.quantizer, config.quant, config.calib, protocol, config.seed)
        check(lambda: recipe.check(config, cell.steps), "steps", *read)
        check(lambda: coverage.check(config), "coverage", model, config.quant)
        check(lambda: choice.check(config), "backend", config.backend, *read, config.sampling, config.device)
    return cell
