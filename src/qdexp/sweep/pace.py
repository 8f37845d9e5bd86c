"""The time that a sweep takes: its work, by how fast the stages of earlier records were, or where there are none by how fast a
batch goes through the network here."""

from collections import defaultdict
from collections.abc import Sequence
from statistics import median

import torch

from qdexp import device as devices
from qdexp.cell import Cell
from qdexp.config import Config
from qdexp.config.checks import checked
from qdexp.config.learning import Learning
from qdexp.errors import UserError
from qdexp.footprint.places import Here, Place
from qdexp.layout import Layout, records_in
from qdexp.methods.observe import RangeEstimation
from qdexp.metrics.latency import seconds as timed
from qdexp.models.conditions import has_example
from qdexp.progress import duration
from qdexp.record import read_records
from qdexp.stages.base import Stage
from qdexp.stages.curves import CurvesStage
from qdexp.stages.quantized_samples import QuantizedSamplesStage
from qdexp.stages.running import Source
from qdexp.stages.steps import StepStage
from qdexp.store import Store
from qdexp.sweep.jobs import Node
from qdexp.sweep.plan import (
    Work,
    disk_bytes,
    hours,
    macs,
    multiplications,
    multiplications_of_row,
    parameters,
    passes,
    rounded,
    work_of,
)

LOOKED_AT = 20
"""The newest records that are asked."""
LARGEST = 10**8
"""Parameters up to which a network is tried: a larger one takes its time to be read."""
TRIED = 4e10
"""MACs of a pass that is timed: on a CPU about a second."""
QUANTIZED, LEARNED, SEARCHED = 1.25, 2.2, 4.0
"""The time of a row over that in full precision: simulated, in the small batches that rounding is learned from, and where
ranges are searched. Measured on ddpm_fashion by ``python -m benchmarks execution`` and ``... quantization --rows 320``."""


def estimate(cells: Sequence[Cell], nodes: Sequence[Node], store: Store, place: Place) -> str:
    """MACs, time and bytes of disk of the jobs ``nodes``, in one line."""
    work, cluster = work_of(cells, nodes, store), cells[0].config.cluster
    known = sum(count * (macs(config, stage) or 0) for config, stage, count in work)
    rate = (
        "" if cluster.tflops is None else f", {rounded(hours(known, cluster) or 0)} hours at cluster.tflops={cluster.tflops:g}"
    )
    disk = f"{sum(count * disk_bytes(config, stage) for config, stage, count in work) / 1e9:.2g} GB of disk"
    return f"{rounded(known / 1e12)} TMACs{rate}; {_time(work, store.layout, place)}; about {disk}"


def _time(work: Work, layout: Layout, place: Place) -> str:
    here = place if isinstance(place, Here) else None
    guess = _by_records(work, layout) or (_measured(work, here) if here and devices.are_here() else None)
    if guess is None:
        return f"time unknown, {layout.records} has no complete record to go by"
    seconds, told = guess
    jobs = (here.jobs if here else None) or 1
    shared = f", {duration(seconds / jobs)} in {jobs} processes" if jobs > 1 else ""
    return f"about {duration(seconds)} of computing{shared}, a guess by {told}"


def _by_records(work: Work, layout: Layout) -> tuple[float, str] | None:
    """Seconds of one process, and what they are known by; None where no record tells."""
    paths = sorted(records_in(layout.records), key=lambda path: -path.stat().st_mtime_ns)[:LOOKED_AT]
    found: dict[str, list[float]] = defaultdict(list)
    asked = 0
    for path in paths:
        try:
            record = read_records([path])[0]
            cell = Cell(checked(Config, record["config"]))
            stages = cell.stages if record["status"] == "complete" else {}
        except (UserError, OSError):
            continue  # of another version, or its weights are gone
        for role, stage in stages.items():
            cost = record["costs"].get(role, {})
            if "seconds" in cost and "resumed" not in cost:
                found[stage.name].append(cost["seconds"] / multiplications(cell.config, stage))
        asked += bool(stages)
    if not found:
        return None
    rates = {name: median(values) for name, values in found.items()}  # seconds a multiplication
    anything = median(rates.values())
    seconds = sum(count * rates.get(stage.name, anything) * multiplications(config, stage) for config, stage, count in work)
    unlike = sorted({stage.name for _, stage, _ in work} - rates.keys())
    caveat = f", none of them tells of {', '.join(unlike)}" if unlike else ""
    return seconds, ("1 earlier record" if asked == 1 else f"{asked} earlier records") + caveat


def _measured(work: Work, here: Here) -> tuple[float, str] | None:
    """Seconds of one process, by a batch timed here; None where a network is large, or no input for it can be made up."""
    models = {config.model.name: config for config, _, _ in work}
    if any(parameters(config.model) > LARGEST or not has_example(config.model) for config in models.values()):
        return None
    pace = {name: _seconds_of_a_row(config, here) for name, config in models.items()}
    seconds = sum(count * pace[config.model.name] * passes(config, stage) * _factor(stage) for config, stage, count in work)
    return seconds, "a batch that the network was given just now"


def _factor(stage: Stage) -> float:
    if isinstance(stage, StepStage):
        return LEARNED if isinstance(stage.step, Learning) else SEARCHED if isinstance(stage.step, RangeEstimation) else 1.0
    return QUANTIZED if isinstance(stage, QuantizedSamplesStage | CurvesStage) else 1.0


def _seconds_of_a_row(config: Config, here: Here) -> float:
    """Seconds that a row takes in the full-precision network, in a batch of the sampler."""
    device = devices.resolve(config.device)
    running, before = Source.of(config, None, None).running({}, device), torch.get_num_threads()
    rows = min(running.batch, max(1, int(TRIED / multiplications_of_row(config))))
    torch.set_num_threads(here.threads or before)
    try:
        return min(timed(running.forward(rows), device) for _ in range(2)) / rows  # the first one warms up
    finally:
        torch.set_num_threads(before)
