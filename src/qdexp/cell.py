"""A cell: one config, the stages that it needs, and the record that they end in."""

import traceback
from collections.abc import Callable, Mapping
from dataclasses import asdict, is_dataclass, replace
from functools import cached_property
from pathlib import Path
from typing import Any

from qdexp import device as devices
from qdexp import files, models, provenance
from qdexp import record as records
from qdexp.config import RANDOM, Config, Model
from qdexp.entries import digest
from qdexp.layout import Layout
from qdexp.methods import recipe
from qdexp.methods.base import NamedStep
from qdexp.models import checks
from qdexp.models.architecture import check_plain
from qdexp.record import Record
from qdexp.sampling.effects import refuse_bounds, refuse_other_paths
from qdexp.sampling.sampler import Sampler
from qdexp.stages import alignment, conditions, coverage, evaluation, perceptual
from qdexp.stages.base import Stage
from qdexp.stages.calibration import chosen_rows
from qdexp.stages.keys import identity, short_hash
from qdexp.stages.wiring import FULL_PRECISION, stages_of
from qdexp.store import Entry, Store


class Cell:
    """Made from a config that has been checked; ``stages`` are in the order in which they are made.

    ``keys``: those of the stages as they were planned, of a cell that other code than that of this process computes.
    """

    def __init__(self, config: Config, keys: Mapping[str, str] | None = None) -> None:
        self.config = config
        self.out = Path(config.out)
        self.device = devices.resolve(config.device)
        self.quantized = not config.full_precision
        self._planned = keys

    @cached_property
    def stages(self) -> dict[str, Stage]:
        """By the roles that they play, in the order in which they are made."""
        return stages_of(self.config)

    @cached_property
    def keys(self) -> dict[str, str]:
        """The key of each stage."""
        return dict(self._planned) if self._planned else {role: stage.key for role, stage in self.stages.items()}

    @property
    def key(self) -> str:
        """Equal for cells that are one and the same whatever they are called."""
        return short_hash(self.keys)

    @cached_property
    def identity(self) -> str:
        """Equal for cells that differ in nothing but their seed: the key that the cell would have with the seed 0."""
        return self.key if self.config.seed == 0 else Cell(replace(self.config, seed=0)).key

    @cached_property
    def files(self) -> dict[str, dict[str, str]]:
        """The path and the digest of each file outside the store that the stages read, by its role."""
        found: dict[str, dict[str, str]] = {}
        for name, stage in self.stages.items():
            for role, path in stage.files_outside.items():
                file = {"path": str(path), "sha256": digest(path)}
                if file not in found.values():
                    found[f"{name}.{role}" if role in found else role] = file
        return found

    @cached_property
    def steps(self) -> list[NamedStep]:
        """Those of the method, in order; none in full precision."""
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
        """What a person calls the cell."""
        return f"{self.method} {self.config.quant.label}" if self.quantized else self.method

    @property
    def name(self) -> str:
        """The record's file name."""
        return "-".join([self.config.model.name, *self.label.split(), self.key[:10]])

    @property
    def record(self) -> Path:
        """Where the record is, or will be."""
        return Layout(self.out).record(self.name)

    def run(self, begin: Callable[[str], object] | None = None) -> Record:
        """Makes what is missing in the store and the record; a failure becomes a record too, and is raised again.

        ``begin`` is called with the name of each stage before it is made or found.
        """
        store = Store(self.out)
        rehearsal = f"  (weights: random; no number of this run says anything of {self.config.model.name})"
        print(f"{self.label}{rehearsal if models.is_rehearsal(self.config.model) else ''}", flush=True)
        stage = "record"
        try:
            entries = {}
            for stage in self.stages:
                if begin is not None:
                    begin(stage)
                entries[stage] = self.stages[stage].make(store)
            old = records.read_complete(self.out, self.name)
            if old is not None:
                return old
            costs = {stage: entry.costs for stage, entry in entries.items()}
            record = self._record("complete") | {"costs": costs | {"total": _total(costs)}}
            record |= {"stages": {stage: _made(self.keys[stage], entry) for stage, entry in entries.items()}}
            record |= self._results({stage: entry.folder for stage, entry in entries.items()})
        except BrokenPipeError:  # nobody reads what is printed: no failure of the cell
            raise
        except Exception as error:
            self.fail(describe(stage, error))
            raise
        records.write(self.out, record)
        return record

    def fail(self, error: dict[str, str]) -> None:
        """Makes the record of a cell that failed, unless it says so already, or succeeded: what was measured stays measured."""
        known = records.read(self.out, self.name) or {}
        if known.get("status") != "complete" and known.get("error") != error:
            records.write(self.out, self._record("failed") | {"error": error})

    def _record(self, status: str) -> Record:
        config = self.config
        axes = {
            "model": config.model.name,
            "weights": RANDOM if models.is_rehearsal(config.model) else "file",
            "method": self.method,
            "quant": config.quant.label if self.quantized else "full",
            "quantizer": config.quantizer.name if self.quantized else "none",
            "calib": config.calib.name if self.calibrated else "none",
            "recon": config.recon.name if self.learns else "none",
            "weight_bits": config.quant.weight_bits if self.quantized else 32,
            "act_bits": config.quant.act_bits if self.quantized else 32,
            "protocol": config.protocol.name,
            "seed": config.seed,
        }
        seeds = {"seed": config.seed, "noise_seed": config.protocol.noise_seed}
        return {
            "format": records.FORMAT,
            "cell": self.name,
            "status": status,
            "axes": axes,
            "config": asdict(config),
            "identity": self.identity,
            "keys": self.keys,
            "files": self.files,
            "protocol": protocol_of(config),
            "provenance": provenance.collect(self.device) | {"seeds": seeds},
        }

    def _results(self, folders: dict[str, Path]) -> Record:
        """What the stages add, section by section; of full precision, where it is compared with, nothing."""
        results: Record = {}
        for role, folder in folders.items():
            if role != FULL_PRECISION:
                for section, content in self.stages[role].results(folder).items():
                    results.setdefault(section, {}).update(content)
        results["artifacts"] = {name: str(path.relative_to(self.out)) for name, path in results["artifacts"].items()}
        return results


def _made(key: str, entry: Entry) -> dict[str, Any]:
    """A stage's key, the commit of the process that made the result, and the keys that it had before it was accepted."""
    accepted = {"accepted": entry.note["accepted"]} if "accepted" in entry.note else {}
    return {"key": key, **entry.note["made"], **accepted}


def describe(stage: str, error: Exception) -> dict[str, str]:
    """An error as a record keeps it; to be called where it is handled."""
    return {"stage": stage, "type": type(error).__name__, "message": str(error), "traceback": traceback.format_exc()}


def _total(costs: dict[str, dict[str, float]]) -> dict[str, float]:
    """What the cell costs from an empty store: seconds add up, memory peaks do not."""
    seconds = sum(cost["seconds"] for cost in costs.values())
    return {"seconds": round(seconds, 3), "peak_memory_mb": max(cost["peak_memory_mb"] for cost in costs.values())}


def protocol_of(config: Config) -> dict[str, Any]:
    """How the cell's numbers are measured, with a hash: only numbers of equal hash may be compared."""
    protocol = config.protocol
    measured = {
        "n": protocol.n,
        **conditions.protocol_of(config),
        "steps": protocol.steps,
        "scheduler": identity(protocol.scheduler),
        "pixels": protocol.pixels,
        "noise_seed": protocol.noise_seed,
        "heldout": protocol.heldout,
        **evaluation.protocol_of(config),
        **alignment.protocol_of(config),
    }
    return {"hash": short_hash(measured), "name": protocol.name, **measured, **evaluation.remarks(config)}


def _image_shape(model: Model) -> list[int]:
    """As far as it is known before a first stage decodes: its channels then."""
    return model.shape if model.first_stage is None else [model.first_stage.network.get("out_channels", 3)]


def preflight(config: Config, passed: set[str] | None = None) -> Cell:
    """The cell, once everything that can be known before any work has been checked. Raises UserError.

    ``passed`` remembers checks from cell to cell: what a sweep's cells share is checked once.
    """
    model, protocol, known = config.model, config.protocol, set[str]() if passed is None else passed

    def check(work: Callable[[], object], *read: object) -> None:
        key = short_hash([asdict(part) if is_dataclass(part) and not isinstance(part, type) else part for part in read])
        if key not in known:
            work()
            known.add(key)

    check(lambda: files.require_writable(Path(config.out), f"out={config.out}"), "out", config.out)
    devices.resolve(config.device)
    check(lambda: checks.weights(model), "weights", model)
    check(lambda: identity(model.network), "network", model)  # it can be imported
    check(lambda: refuse_other_paths(model, protocol), "path", protocol, model)
    check(lambda: _check_protocol(config), "protocol", protocol, config.trajectory, model)
    if config.inspection.lpips:
        weights = Path(config.inspection.lpips)
        check(lambda: perceptual.check(weights, _image_shape(model)), "lpips", config.inspection.lpips, model)
    cell = Cell(config)
    _ = cell.key, cell.files  # every _target_ can be imported, every file be read
    check(lambda: checks.declarations(model), "declared", model)
    check(lambda: checks.fit(model), "fit", model)
    check(lambda: Sampler(model, protocol).rehearse(), "sampler", protocol, model)
    check(lambda: refuse_bounds(model, protocol), "bounds", protocol, model)
    if cell.quantized:
        if cell.calibrated:
            check(lambda: chosen_rows(config), "rows", config.calib, config.trajectory, protocol, config.seed)
        check(lambda: check_plain(model.network), "plain", model)
        read = (model, config.quantizer, config.quant, config.calib, protocol, config.seed)
        check(lambda: recipe.check(config, cell.steps), "steps", *read)
        check(lambda: coverage.check(config), "coverage", model, config.quant)
    return cell


def _check_protocol(config: Config) -> None:
    conditions.check(config)
    alignment.check(config)
    evaluation.check(config, _image_shape(config.model))
