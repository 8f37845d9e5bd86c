"""The memory that each stage of a cell holds at once: on the device, in the host's memory, and as rows of block-wise learning,
which lie wherever there is room."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache, singledispatch
from math import prod
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from qdexp.config import ACTIVATIONS, WEIGHTS, Config
from qdexp.config.learning import BlockWise, Learning, ScaleLearning, WeightLearning
from qdexp.errors import UserError
from qdexp.footprint import layerwise, passes, walks
from qdexp.footprint.passes import FLOAT
from qdexp.methods.base import instance_of
from qdexp.methods.low_rank import LowRank
from qdexp.methods.observe import RangeEstimation
from qdexp.methods.rotate import Rotate
from qdexp.methods.smooth import Smooth
from qdexp.methods.split import SplitShortcuts
from qdexp.methods.weights import WeightRounding
from qdexp.metrics.base import COVERAGE, CURVES, FEATURES, NETWORK, SIZE
from qdexp.quant.ranges import RangeEstimator
from qdexp.sampling.sampler import timesteps_of
from qdexp.stages.activations import ActivationsStage
from qdexp.stages.base import Stage
from qdexp.stages.calibration import CalibrationStage
from qdexp.stages.conditions import ConditionsStage
from qdexp.stages.coverage import CoverageStage
from qdexp.stages.curves import CurvesStage
from qdexp.stages.features import FeaturesStage
from qdexp.stages.layers import LayersStage
from qdexp.stages.metric import MetricStage
from qdexp.stages.quantized_samples import QuantizedSamplesStage
from qdexp.stages.running import RunningMetricStage
from qdexp.stages.samples import SamplesStage
from qdexp.stages.size import SizeStage
from qdexp.stages.steps import StepStage
from qdexp.stages.trajectory import TrajectoryStage

SAMPLING, LEARNING, ROWS, LOOKED_AT = "sampling.batch", "recon.batch", "calib.rows", "inspection.rows"
"""The options that a need follows."""


@dataclass(frozen=True)
class Part:
    """A part of a stage's memory, by name, in bytes. ``option`` and its ``value``: the option that lowers it; None: none
    does."""

    what: str
    bytes: int
    option: str | None = None
    value: int = 1


@dataclass(frozen=True)
class Need:
    """The memory of a stage at its peak.

    Attributes:
        device: On the device that computes; on a CPU this is the host's memory too.
        host: In the host's memory, beside.
        rows: Bytes of the rows of block-wise learning: they lie on the device, in the host's memory or in files, wherever there
            is room.
        unknown: What cannot be traced.
    """

    device: tuple[Part, ...] = ()
    host: tuple[Part, ...] = ()
    rows: int = 0
    unknown: tuple[str, ...] = ()

    def __add__(self, other: "Need") -> "Need":
        return Need(self.device + other.device, self.host + other.host, self.rows + other.rows, self.unknown + other.unknown)


def total(parts: Sequence[Part]) -> int:
    return sum(part.bytes for part in parts)


class Planner:
    """Knows a cell's config, and what its networks and passes take."""

    def __init__(self, config: Config, device: torch.device) -> None:
        self.config, self.cuda = config, device.type == "cuda"
        self.model, self.batch = config.model, config.sampling.batch
        self.rounded, self.rounds = WEIGHTS in config.quant.touched, ACTIVATIONS in config.quant.touched

    @property
    def branches(self) -> int:
        return self.config.protocol.branches if self.model.condition is not None else 1

    @property
    def calls(self) -> int:
        return len(timesteps_of(self.model, self.config.protocol))

    def walks(self, copies: int, rows: int | None = None) -> int:
        """Bytes of whole trajectories of a batch, float32."""
        return copies * FLOAT * self.calls * (self.batch if rows is None else rows) * prod(self.model.shape)

    def network(self, quantized: bool = False) -> Need:
        """The network on the device, after it was loaded into the host's memory."""
        what = "quantized network" if quantized else "network"
        size = passes.network_bytes(self.model, quantized and self.rounded)
        loaded = (Part(f"{what}, as it is loaded", size),) if self.cuda else ()
        return Need((Part(what, size),), loaded)

    def sampling(self, quantized: bool = False, rows: int | None = None) -> Part:
        """A call of the sampler."""
        count, branches = self.batch if rows is None else min(rows, self.batch), self.branches if rows is None else 1
        held = passes.HELD * count * FLOAT * prod(self.model.shape)
        act = self.config.quant.act
        copies = self.cuda or (act.number, act.granularity) != ("int", "per_tensor")
        size = held + passes.pass_bytes(self.model, count, branches, quantized and self.rounds, copies)
        return Part(f"a pass of {count} rows", size, SAMPLING, count)

    def calibration(self) -> Part:
        calib = self.config.calib
        rows = calib.timesteps * calib.rows * self.branches
        return Part(f"{rows:,} calibration rows", rows * passes.row_bytes(self.model), ROWS, calib.rows)


_needs: dict[tuple[str, str], Need] = {}
"""The needs that are known already: finding them takes traces."""


def need_of(stage: Stage, config: Config) -> Need:
    """The memory that the stage takes; parts that cannot be traced are listed in ``unknown``."""
    key = stage.entry, stage.device.type
    if key not in _needs:
        try:
            _needs[key] = _need(stage, Planner(config, stage.device))
        except UserError as error:  # of networks that cannot run on shapes alone
            _needs[key] = Need(unknown=(f"its passes: {error}",))
    return _needs[key]


@singledispatch
def _need(stage: Stage, of: Planner) -> Need:
    return Need(unknown=("what it measures with",))


@_need.register
def _(stage: SizeStage, of: Planner) -> Need:
    return Need()


@_need.register
def _(stage: MetricStage, of: Planner) -> Need:
    """Numbers that lie in files already take next to nothing."""
    in_files = {FEATURES, CURVES, COVERAGE, SIZE, NETWORK}
    return Need() if stage.inputs.keys() <= in_files else Need(unknown=("what it measures with",))


@_need.register
def _(stage: ConditionsStage, of: Planner) -> Need:
    sizes = [(path, _float_bytes(path)) for path in stage.files.values()]
    encoders = sum(size for _, size in sizes)
    found = Need((Part("text encoders", encoders),), (Part("text encoders, as they are loaded", encoders),) if of.cuda else ())
    return found + Need(unknown=("the encoders' passes",)) if encoders else Need()


@_need.register
def _(stage: TrajectoryStage, of: Planner) -> Need:
    recorded = Part(f"trajectories of {of.batch} rows, and a copy to be written", of.walks(4), SAMPLING, of.batch)
    return of.network() + Need((of.sampling(),), (recorded,))


@_need.register
def _(stage: CalibrationStage, of: Planner) -> Need:
    rows = of.calibration()
    read = Part(f"trajectories of {of.batch} rows", of.walks(1), SAMPLING, of.batch)
    return Need(host=(Part(rows.what, 2 * rows.bytes, rows.option, rows.value), read))


@_need.register
def _(stage: SamplesStage, of: Planner) -> Need:
    quantized = isinstance(stage, QuantizedSamplesStage)
    found, phases = of.network(quantized), [of.sampling(quantized)]
    if of.model.first_stage is not None:
        decoding = passes.decoded(of.model, of.batch)
        found += Need((Part("first stage", decoding.network),))
        phases.append(Part(f"decoding of {of.batch} latents", decoding.peak, SAMPLING, of.batch))
    return found + Need((max(phases, key=lambda part: part.bytes),))


@_need.register
def _(stage: StepStage, of: Planner) -> Need:
    step, phases = stage.step, list[Part]()
    quantizes = WEIGHTS in step.quantizes or stage.before is not None
    found = of.network(quantizes)
    if stage.calibration is not None:
        found += Need((of.calibration(),))
    if isinstance(step, RangeEstimation):
        phases.append(of.sampling(quantized=True))
    if isinstance(step, RangeEstimation | WeightRounding):
        searched = passes.or_none(lambda: passes.search_bytes(instance_of(step.range, RangeEstimator, "range"), of.cuda))
        phases += [] if searched is None else [Part("search of ranges", searched)]
        found += Need(unknown=("its search of ranges",) if searched is None else ())
    if isinstance(step, BlockWise):
        found += _walk(step, of)
        phases += _learning(step, of)
    elif isinstance(step, Smooth | LowRank):
        phases.append(_search(step, stage, of))
    elif not isinstance(step, RangeEstimation | WeightRounding | SplitShortcuts | Rotate):
        found += Need(unknown=("what the step itself takes",))
    return found + Need((max(phases, key=lambda part: part.bytes),) if phases else ())


def _search(step: Smooth | LowRank, stage: StepStage, of: Planner) -> Part:
    """The search for what suits each layer, by passes of the first rows."""
    rows = of.config.calib.timesteps * of.config.calib.rows * of.branches
    first = rows if step.rows is None else max(step.rows, of.config.calib.timesteps * of.branches)
    count = min(of.batch, first, rows)
    size = layerwise.search_bytes(of.model, step, stage.quant, count, _changed(stage.before))
    return Part(f"candidates of all layers, tried on {count} rows", size, SAMPLING, count)


def _changed(stage: StepStage | None) -> bool:
    """Whether layers have other coordinates already."""
    return stage is not None and (isinstance(stage.step, Smooth | Rotate) or _changed(stage.before))


def _walk(step: BlockWise, of: Planner) -> Need:
    rows = of.config.calib.timesteps * of.config.calib.rows * of.branches
    second = of.network()
    return Need((Part("full-precision network", total(second.device)),), rows=rows * _walked(step, of).row)


def _learning(step: BlockWise, of: Planner) -> list[Part]:
    """The passes that go on to the next block, a training step, and rounding by second order: one after the other."""
    found = _walked(step, of)
    kind = "scales" if isinstance(step, ScaleLearning) else "weights"
    parts = [of.sampling(quantized=isinstance(step, ScaleLearning)), Part("rounding by second order", found.second_order)]
    if isinstance(step, Learning):
        parts.append(Part(f"learning of {kind} from {step.batch} rows", found.step, LEARNING, step.batch))
    return parts


def _walked(step: BlockWise, of: Planner) -> walks.Walked:
    kind = walks.SCALES if isinstance(step, ScaleLearning) else walks.WEIGHTS
    start = step.start if isinstance(step, WeightLearning) else "nearest" if isinstance(step, ScaleLearning) else None
    batch = step.batch if isinstance(step, Learning) else of.batch
    return walks.walked(of.model, kind, batch, start)


@_need.register
def _(stage: CoverageStage, of: Planner) -> Need:
    return of.network(quantized=True)


@_need.register
def _(stage: CurvesStage, of: Planner) -> Need:
    read = Part(f"trajectories of {of.batch} rows, and their errors", of.walks(10), SAMPLING, of.batch)
    return of.network(quantized=True) + Need((of.sampling(quantized=True),), (read,))


@_need.register
def _(stage: ActivationsStage, of: Planner) -> Need:
    rows = min(stage.rows, of.config.protocol.heldout)
    seen = Part(f"trajectories of {rows} rows", of.walks(2, rows), LOOKED_AT, stage.rows)
    return of.network() + Need((seen, of.sampling(rows=rows)), (Part("trajectories that are read", of.walks(1)),))


@_need.register
def _(stage: LayersStage, of: Planner) -> Need:
    read = Part("trajectories that are read", of.walks(1))
    return of.network() + of.network(quantized=True) + Need((of.sampling(rows=stage.rows),), (read,))


@_need.register
def _(stage: RunningMetricStage, of: Planner) -> Need:
    quantized = of.config.full_precision is False
    return of.network(quantized) + Need((of.sampling(quantized, of.batch),))


@_need.register
def _(stage: FeaturesStage, of: Planner) -> Need:
    model = of.model
    shape = tuple(model.shape) if model.first_stage is None else passes.decoded(model, of.batch).shape
    found = passes.or_none(lambda: sum(passes.extractor_bytes(stage.extractor, shape)))
    if found is None:
        return Need(unknown=("the extractor",))
    network, own = passes.extractor_bytes(stage.extractor, shape)
    loaded = (Part("extractor, as it is loaded", network),) if of.cuda else ()
    return Need((Part("extractor", network), Part(f"features of {stage.extractor.batch} images", own)), loaded)


@cache
def _float_bytes(path: Path) -> int:
    """The bytes of the numbers in a file in float32; the file's own size where it does not say how many there are."""
    try:
        with safe_open(path, framework="pt") as tensors:
            return sum(FLOAT * prod(tensors.get_slice(name).get_shape()) for name in tensors.keys())  # noqa: SIM118
    except (SafetensorError, OSError):
        return path.stat().st_size if path.suffix == ".bin" else 0
