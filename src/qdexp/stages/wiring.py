"""Stages of a cell from its config. Each stage is made once and handed to those that read it."""

from collections.abc import Mapping
from typing import Any

from qdexp.backends import choice
from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.methods import recipe
from qdexp.methods.base import OPTION
from qdexp.metrics.base import COVERAGE, CURVES, FEATURES, FULL_PRECISION, NETWORK, PROMPTS, RUNNING, SAMPLES, SIZE
from qdexp.metrics.chosen import metrics_of
from qdexp.metrics.extractor import Extractor
from qdexp.stages.activations import ActivationsStage
from qdexp.stages.base import Stage
from qdexp.stages.conditions import ConditionsStage
from qdexp.stages.coverage import CoverageStage
from qdexp.stages.curves import CurvesStage
from qdexp.stages.features import FeaturesStage
from qdexp.stages.layers import LayersStage
from qdexp.stages.metric import MetricStage
from qdexp.stages.quantized import Quantized
from qdexp.stages.quantized_samples import QuantizedSamplesStage
from qdexp.stages.running import RunningMetricStage, Source
from qdexp.stages.samples import SamplesStage
from qdexp.stages.size import SizeStage
from qdexp.stages.steps import StepStage
from qdexp.stages.trajectory import heldout_trajectory


def stages_of(config: Config) -> dict[str, Stage]:
    """The stages by the roles that they play in the cell, in the order in which they are made; what measures its images comes
    later (``measures_of``).

    Raises UserError where a file is missing, a ``_target_`` cannot be imported, or the method's steps cannot be taken.
    """
    full_precision, steps = SamplesStage.of(config), steps_of(config)
    if not steps:
        return {**_conditions(full_precision), SAMPLES: full_precision, SIZE: SizeStage.of(config)}
    quantization = list(steps.values())[-1]
    quantized, heldout = Quantized(quantization=quantization, backend=choice.of_config(config)), heldout_trajectory(config)
    samples = QuantizedSamplesStage.of_checkpoint(config, quantized)
    before = _calibrating(steps)
    stages: dict[str, Stage] = {
        **_conditions(samples, before.get("trajectory"), heldout),
        **before,
        **steps,
        COVERAGE: CoverageStage.of(config, quantization),
        "heldout": heldout,
        CURVES: CurvesStage.of(quantized, heldout),
        FULL_PRECISION: full_precision,
        SAMPLES: samples,
    }
    if config.inspection.rows:
        stages["activations"] = ActivationsStage.of(config, heldout)
        stages["layers"] = LayersStage.of(config, quantized, heldout)
    for slot in steps:
        if stages[slot] is not steps[slot]:
            raise UserError(f"{OPTION}.{slot}: a stage of every cell is called so; give the step another name")
    return stages


def steps_of(config: Config) -> dict[str, StepStage]:
    """The stages of the method's steps, by their slots."""
    stages: dict[str, StepStage] = {}
    found = recipe.steps_of(config)
    for number, one in enumerate(found, start=1):
        before = list(stages.values())[-1] if stages else None
        stages[one.slot] = StepStage.of(config, one, before, last=number == len(found))
    return stages


def measures_of(config: Config, stages: Mapping[str, Stage]) -> dict[str, Stage]:
    """The stages that measure the images of ``stages``: the metrics by their names, and the features that they read.

    A metric that needs what there is not in the cell is left out. Raises UserError where one cannot be taken.
    """
    there, found = _there(config, stages), dict[str, Stage]()
    for one in metrics_of(config):
        wanted = set(one.metric.needs_of(config))
        extractor = one.metric.extractor(config)
        if not wanted <= there.keys():
            continue
        needed = {need: there[need] for need in sorted(wanted)}
        if extractor is not None:
            needed[FEATURES] = _features(there[SAMPLES], extractor, one.name, found)
        if one.name in stages or one.name in found:
            raise UserError(f"{one.option}: a stage of the cell is called so; give the metric another name")
        device, source = there[SAMPLES].device, needed.pop(RUNNING, None)
        if source is None:
            found[one.name] = MetricStage.of(config, one, device, needed)
        else:
            found[one.name] = RunningMetricStage.of(config, one, device, needed, source=source)
    return found


def _features(samples: SamplesStage, extractor: Extractor, metric: str, found: dict[str, Stage]) -> Stage:
    """The features of an extractor for the samples: one of those ``found`` already, or added there."""
    known = next((one for one in found.values() if isinstance(one, FeaturesStage) and one.extractor == extractor), None)
    if known is not None:
        return known
    features = FeaturesStage.of(samples, extractor)
    role = f"{FEATURES}_{extractor.name}"
    if found.setdefault(role, features).key != features.key:  # of the same name, and with other weights
        role = f"{FEATURES}_{metric}"
        found[role] = features
    return found[role]


def _there(config: Config, stages: Mapping[str, Stage]) -> dict[str, Any]:
    """The things that metrics may need, by their names in ``qdexp.metrics.base``: stages, and plain values."""
    found: dict[str, Any] = {need: stages[need] for need in (SAMPLES, FULL_PRECISION, CURVES, COVERAGE, SIZE) if need in stages}
    if COVERAGE in stages:
        found[NETWORK] = stages[COVERAGE].inputs["quantization"]
    samples = stages[SAMPLES]
    conditions = samples.inputs.get("conditions")
    assert conditions is None or isinstance(conditions, ConditionsStage)
    found[RUNNING] = Source.of(config, getattr(samples, "quantized", None), conditions)
    if isinstance(conditions, ConditionsStage) and all(isinstance(one, str) for one in conditions.wanted):
        found[PROMPTS] = conditions.wanted
    return found


def _calibrating(steps: dict[str, StepStage]) -> dict[str, Stage]:
    """The calibration set that steps read, and where its rows come from."""
    for stage in steps.values():
        if stage.calibration is not None:
            return {"trajectory": stage.calibration.trajectory, "calibration": stage.calibration}
    return {}


def _conditions(samples: Stage, calibration: Stage | None = None, heldout: Stage | None = None) -> dict[str, Stage]:
    """The conditions of each noise stream; where several streams have the same, the first alone."""
    made: dict[str, Stage] = {}
    for prefix, reader in {"": samples, "calibration_": calibration, "heldout_": heldout}.items():
        stage = reader.inputs.get("conditions") if reader else None
        if stage is not None and stage.key not in {one.key for one in made.values()}:
            made[f"{prefix}conditions"] = stage
    return made
