"""One Weights & Biases run a cell, written after the fact from the cell's record.

===============  ====================================================================================================
W&B              record
===============  ====================================================================================================
id, name, group  sweep and cell, cell, sweep: two sweeps that share a cell do not collide
config           the axes, the steps of the method and the protocol as flat top-level keys, to group and filter by; ``row``,
                 the same for runs that differ in their seed alone; the frozen config, the stage keys, the digests of files,
                 what the metrics say of their numbers and the provenance whole, under ``record``
summary          metrics, sizes, coverage by bits and costs, once and flat; ``status``, and the error of a failed cell
history          the curves, one row a sampler step, over their own axis ``curves/sampler_step``; samples; a table of the layers
artifact         the quantized checkpoint, named by its stage key, so that cells which share it share the artifact
===============  ====================================================================================================

A run always shows its record as it now is: runs are never resumed, so mirroring a cell again replaces what was there,
here and, at the next ``wandb sync``, on the server. A run's folder takes its place among the others when it is whole: whatever
kills a mirror leaves the run as it was, or none, and nothing of a cell is ever there twice.
"""

import contextlib
import hashlib
import json
import re
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from qdexp import entries, environ, files, locks
from qdexp.layout import Layout, entry_name, stage_and_key
from qdexp.record import Record, flat

if TYPE_CHECKING:
    import wandb

LONGEST = 64
"""Characters of the longest tag that W&B takes; run ids are kept to it too."""

SETTINGS: dict[str, Any] = {
    "silent": True,
    "console": "off",
    "disable_git": True,
    "save_code": False,
    "init_timeout": 30.0,  # a server that does not answer must not hold a compute node
    "finish_timeout": 300.0,
    "finish_timeout_raises": True,
    # What W&B would find out by itself describes the process that mirrors, not the one that measured.
    "x_disable_stats": True,
    "x_disable_meta": True,
    "x_disable_machine_info": True,
    "x_save_requirements": False,
    "x_transaction_log_flush_interval": 2.0,  # 15 s by default: a job killed before that leaves an empty log
}
"""The settings of W&B; those with an ``x_`` are private to it: any of them is left out where the installed version does not
know it."""


class TrackingError(Exception):
    """The mirror failed; the record is as good as before. The message is one line, to be printed as a warning."""


def mirror(
    record: Record,
    sweep: str,
    folder: Path,
    project: str,
    mode: str,
    entity: str | None,
    *,
    out: Path | None = None,
    grid: Path | None = None,
) -> Path:
    """Writes the W&B run of ``record`` and returns its directory (what ``wandb sync`` takes).

    ``mode`` is offline or online. Everything is written under ``folder``. ``out`` is the folder that the paths in
    ``record["artifacts"]`` start from; with it the checkpoint becomes an artifact. ``grid`` is a PNG of samples. Raises
    TrackingError and nothing else.
    """
    try:
        layout, run = Layout(folder.resolve()), run_id(sweep, record["cell"])
        with locks.alone(layout.wandb_lock(run), f"another process writes the W&B run of {record['cell']}"):
            part, data = (place(run, uuid4().hex[:12]) for place in (layout.wandb_part, layout.wandb_data))
            part.mkdir(parents=True)
            try:
                with environ.variables(_environment(layout, part, data, mode)):
                    place = {"dir": part, "project": project, "mode": mode, "entity": entity}
                    made = _write(_plain(record), sweep, place, out, grid)
                return _put(made, layout, run, data)
            except BaseException:
                shutil.rmtree(data, ignore_errors=True)
                raise
            finally:
                shutil.rmtree(part, ignore_errors=True)
    except Exception as error:
        reason = (str(error).splitlines() or [""])[0]
        raise TrackingError(f"W&B run of {record.get('cell')} not written: {type(error).__name__}: {reason}") from error


def written(folder: Path, sweep: str, cell: str) -> float:
    """The time at which the run of a cell was last written, as files have it (st_mtime); 0 where there is none under
    ``folder``."""
    logs = (log for found in Layout(folder).wandb_runs(run_id(sweep, cell)) for log in found.glob("run-*.wandb"))
    return max((log.stat().st_mtime for log in logs), default=0.0)


def run_id(sweep: str, cell: str) -> str:
    """Id of a cell's run: ``sweep-cell``, with a digest in place of what W&B or a file name cannot hold."""
    plain = re.sub(r"[^A-Za-z0-9_.-]", "-", f"{sweep}-{cell}")
    if plain == f"{sweep}-{cell}" and len(plain) <= LONGEST:
        return plain
    digest = hashlib.sha256(f"{sweep}\0{cell}".encode()).hexdigest()[:12]
    return f"{plain[: LONGEST - 13]}-{digest}"


def _environment(layout: Layout, part: Path, data: Path, mode: str) -> dict[str, str]:
    """Keeps W&B out of the home folder, and off the network when offline: it looks both up before ``init`` is called."""
    return {
        "WANDB_MODE": mode,
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(part),
        "WANDB_DATA_DIR": str(data),
        "WANDB_CACHE_DIR": str(layout.wandb_cache),
    }


def _write(record: Record, sweep: str, place: dict[str, Any], out: Path | None, grid: Path | None) -> Path:
    """The run's folder, in that of ``place``."""
    import wandb

    with _run(record, sweep, place) as run:
        _log_curves(run, record.get("curves", {}))
        if grid is not None:
            run.log({"samples": wandb.Image(str(grid))})
        layers = [] if out is None else _layers(record, out)
        if layers:
            run.log({"layers": wandb.Table(columns=list(layers[0]), data=[list(layer.values()) for layer in layers])})
        if out is not None and "checkpoint" in record.get("artifacts", {}):
            run.log_artifact(_checkpoint(record, out))
        run.summary.update(summary(record))
    return Path(run.dir).parent


def _put(made: Path, layout: Layout, run: str, data: Path) -> Path:
    """The run's folder in the place of earlier ones, which would overwrite it if they were synced after it; what these have
    left elsewhere, and what killed processes have, is removed."""
    layout.wandb.mkdir(exist_ok=True)
    for older in layout.wandb_runs(run):
        shutil.rmtree(older)
    placed = made.rename(layout.wandb / made.name)
    for leftover in layout.wandb_leftovers(run):
        if leftover != data:
            shutil.rmtree(leftover, ignore_errors=True)
    return placed


@contextlib.contextmanager
def _run(record: Record, sweep: str, place: dict[str, Any]) -> Iterator["wandb.Run"]:
    """A run that is marked as failed where its record, or the writing of it, has failed."""
    import wandb

    host = record.get("provenance", {}).get("host")
    known = {name: value for name, value in SETTINGS.items() if name in wandb.Settings.model_fields}
    exit_code = 1
    try:
        run = wandb.init(
            id=run_id(sweep, record["cell"]),
            name=record["cell"],
            group=sweep,
            job_type=record["axes"]["method"],
            tags=tags(record),
            config=config(record, sweep),
            settings=wandb.Settings(host=host, **known),
            **place,
        )
        try:
            yield run
            exit_code = 0 if record["status"] == "complete" else 1
        finally:
            run.finish(exit_code=exit_code)
    finally:
        wandb.teardown()  # finish() returns a moment before the log is closed; this waits for it


def tags(record: Record) -> list[str]:
    """A few words to click on: the model, the bit-widths and the calibration strategy, and what about it is random."""
    axes = record["axes"]
    words = [str(axes.get(name) or "")[:LONGEST] for name in ("model", "quant", "calib")]
    words += ["weights: random"] if axes.get("weights") == "random" else []
    words += ["extractor: random"] if record.get("protocol", {}).get("random_extractor") else []
    measures = record.get("measures", {}).items()
    words += [f"{name}: random"[:LONGEST] for name, told in measures if told.get("made_with", {}).get("weights") == "random"]
    return list(dict.fromkeys(word for word in words if word))


def config(record: Record, sweep: str) -> dict[str, Any]:
    """The run's config. Nested keys can be read in W&B but hardly grouped by: what is compared lies flat at the top."""
    whole = ("format", "config", "identity", "keys", "files", "measures", "stages", "protocol", "coverage", "provenance",
             "artifacts")  # fmt: skip
    axes = record["axes"]
    return {
        **axes,
        "steps": steps(record),
        "row": f"{axes['method']} {axes['quant']} {record['identity'][:10]}",
        "cell": record["cell"],
        "sweep": sweep,
        **flat(record.get("protocol", {}), "_", "protocol_"),
        "record": {name: record[name] for name in whole if name in record},
    }


def steps(record: Record) -> str:
    """The steps of the method that were made, in order: ``weights: AdaRound, act: Observe``; ``none`` in full precision."""
    asked = (re.fullmatch(r"quantizer\.steps\.([^.]+)\._target_ (.*\.)?(.+)", f"{name} {value}") for name, value in
             flat(record["config"]).items())  # fmt: skip
    return ", ".join(f"{one[1]}: {one[3]}" for one in asked if one and one[1] in record["keys"]) or "none"


def summary(record: Record) -> dict[str, Any]:
    """The run's headline numbers. W&B would store a NaN as an empty cell: such a metric is left out and named instead."""
    metrics = flat(record.get("metrics", {}), "_")
    missing = [name for name, value in metrics.items() if value is None]
    return {
        "status": record["status"],
        **{name: value for name, value in metrics.items() if value is not None},
        **flat({name: record.get("coverage", {}).get(name, {}) for name in ("macs", "parameters")}, "_", "coverage_"),
        **flat(record.get("costs", {}), "_"),
        **flat(record.get("error", {}), "_", "error_"),
        **({"not_finite": ", ".join(missing)} if missing else {}),
    }


def _log_curves(run: "wandb.Run", curves: dict[str, list[float | None]]) -> None:
    """One history row a sampler step; a value that is not finite is a gap in its line.

    Metrics are defined one by one, since W&B resolves overlapping globs at random, and kept out of the summary.
    """
    if not curves:
        return
    step = "curves/sampler_step"
    run.define_metric(step, hidden=True, summary="none")
    for name in curves:
        run.define_metric(f"curves/{name}", step_metric=step, summary="none")
    for index, values in enumerate(zip(*curves.values(), strict=True)):
        row = {f"curves/{name}": value for name, value in zip(curves, values, strict=True) if value is not None}
        run.log({step: index, **row})


def _layers(record: Record, out: Path) -> list[dict[str, Any]]:
    """The effect of each quantized layer, where the cell has looked at them."""
    folder = Layout(out).entry(entry_name("layers", record.get("keys", {}).get("layers")))
    layers: list[dict[str, Any]] = files.read_json(entries.require(folder, "layers.json")) if folder.is_dir() else []
    return layers


def _checkpoint(record: Record, out: Path) -> "wandb.Artifact":
    """The packed checkpoint, with its digests and its parent's key. Only what the store holds is ever sent.

    Cheap offline too: an immutable artifact is read where it lies when the run is synced, and never copied.
    """
    import wandb

    folder, keys = (out / record["artifacts"]["checkpoint"]).resolve(), record.get("keys", {})
    _, key = stage_and_key(folder.parent.name)
    store = Layout(out).store
    if folder.parent.parent != store.resolve():
        raise ValueError(f"{folder} lies in no entry of {store}")
    digests = {
        name.removeprefix(f"{folder.name}/"): digest
        for name, digest in entries.whole(folder.parent)["files"].items()
        if name.startswith(f"{folder.name}/")
    }
    if not digests:
        raise FileNotFoundError(f"{folder} holds no checkpoint")
    metadata = {
        "key": key,
        "parent_key": keys.get("calibration"),
        "cell": record["cell"],
        "sha256": digests,
    }
    artifact = wandb.Artifact(f"checkpoint-{key}", type="checkpoint", metadata=metadata)
    for name in digests:
        artifact.add_file(str(folder / name), name=name, policy="immutable")
    return artifact


def _plain(record: Record) -> Record:
    """The record as JSON gives it back, with null in place of NaN and infinity, which W&B's own JSON cannot hold."""
    plain: Record = json.loads(json.dumps(record), parse_constant=lambda name: None)
    return plain
