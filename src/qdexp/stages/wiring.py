"""From a config to the stages of its cell. Each stage is made once and handed to those that read it."""

from pathlib import Path

from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.methods import recipe
from qdexp.methods.base import OPTION
from qdexp.stages.activations import ActivationsStage
from qdexp.stages.alignment import AlignmentStage
from qdexp.stages.base import Stage
from qdexp.stages.coverage import CoverageStage
from qdexp.stages.curves import CurvesStage
from qdexp.stages.evaluation import EvaluationStage
from qdexp.stages.fidelity import FidelityStage
from qdexp.stages.layers import LayersStage
from qdexp.stages.perceptual import PerceptualStage
from qdexp.stages.quantized_samples import QuantizedSamplesStage
from qdexp.stages.samples import SamplesStage
from qdexp.stages.size import SizeStage
from qdexp.stages.steps import StepStage
from qdexp.stages.trajectory import heldout_trajectory

FULL_PRECISION = "full_precision"
"""The role of the images that those of a quantized network are compared with: another cell's own."""


def stages_of(config: Config) -> dict[str, Stage]:
    """The stages by the roles that they play in the cell, in the order in which they are made.

    Raises UserError where a file is missing, a ``_target_`` cannot be imported, or the method's steps cannot be taken.
    """
    full_precision, steps = SamplesStage.of(config), steps_of(config)
    if not steps:
        measured = _measured(config, full_precision)
        return {**_conditions(full_precision), "samples": full_precision, "size": SizeStage.of(config), **measured}
    quantization = list(steps.values())[-1]
    samples, heldout = QuantizedSamplesStage.of_checkpoint(config, quantization), heldout_trajectory(config)
    before = _calibrating(steps)
    stages: dict[str, Stage] = {
        **_conditions(samples, before.get("trajectory"), heldout),
        **before,
        **steps,
        "coverage": CoverageStage.of(config, quantization),
        "heldout": heldout,
        "curves": CurvesStage.of(quantization, heldout),
        FULL_PRECISION: full_precision,
        "samples": samples,
        **_measured(config, samples),
        "fidelity": FidelityStage.of(samples, full_precision),
    }
    if config.inspection.lpips:
        stages["perceptual"] = PerceptualStage.of(Path(config.inspection.lpips), samples, full_precision)
    if config.inspection.rows:
        stages["activations"] = ActivationsStage.of(config, heldout)
        stages["layers"] = LayersStage.of(config, quantization, heldout)
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


def _measured(config: Config, samples: SamplesStage) -> dict[str, Stage]:
    """What compares the images with a reference, and with what was asked for."""
    stages: dict[str, Stage] = {}
    if config.protocol.scores:
        stages["evaluation"] = EvaluationStage.of(config, samples)
    if config.protocol.clip:
        stages["alignment"] = AlignmentStage.of(config, samples)
    return stages


def _calibrating(steps: dict[str, StepStage]) -> dict[str, Stage]:
    """The calibration set that steps read, and where its rows come from."""
    for stage in steps.values():
        if stage.calibration is not None:
            return {"trajectory": stage.calibration.trajectory, "calibration": stage.calibration}
    return {}


def _conditions(samples: Stage, calibration: Stage | None = None, heldout: Stage | None = None) -> dict[str, Stage]:
    """What each noise stream is asked for; where several are asked for the same, the first alone."""
    made: dict[str, Stage] = {}
    for prefix, reader in {"": samples, "calibration_": calibration, "heldout_": heldout}.items():
        stage = reader.inputs.get("conditions") if reader else None
        if stage is not None and stage.key not in {one.key for one in made.values()}:
            made[f"{prefix}conditions"] = stage
    return made
