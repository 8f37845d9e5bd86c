"""From a config to the stages of its cell. Each stage is made once and handed to those that read it."""

from pathlib import Path

from qdexp.config import Config
from qdexp.stages.activations import ActivationsStage
from qdexp.stages.alignment import AlignmentStage
from qdexp.stages.base import Stage
from qdexp.stages.curves import CurvesStage
from qdexp.stages.evaluation import EvaluationStage
from qdexp.stages.fidelity import FidelityStage
from qdexp.stages.layers import LayersStage
from qdexp.stages.perceptual import PerceptualStage
from qdexp.stages.quantization import QuantizationStage
from qdexp.stages.quantized_samples import QuantizedSamplesStage
from qdexp.stages.released import ReleasedStage
from qdexp.stages.samples import SamplesStage
from qdexp.stages.trajectory import heldout_trajectory


def stages_of(config: Config) -> dict[str, Stage]:
    """The stages by the roles that they play in the cell, in the order in which they are made.

    Raises UserError where a file is missing or a ``_target_`` cannot be imported.
    """
    full_precision = SamplesStage.of(config)
    if config.full_precision:
        samples, quantized = full_precision, dict[str, Stage]()
    else:
        quantization = ReleasedStage.of(config) if config.quantizer.released else QuantizationStage.of(config)
        samples, quantized = QuantizedSamplesStage.of_checkpoint(config, quantization), _quantized(config, quantization)
        quantized |= {"full_precision": full_precision}
    stages = {**_conditions(samples, quantized), **quantized, "samples": samples}
    if config.protocol.scores:
        stages["evaluation"] = EvaluationStage.of(config, samples)
    if config.protocol.clip:
        stages["alignment"] = AlignmentStage.of(config, samples)
    if quantized:
        stages |= _inside(config, samples, full_precision, stages)
    return stages


def _quantized(config: Config, quantization: Stage) -> dict[str, Stage]:
    """What makes and what follows the quantized network."""
    heldout = heldout_trajectory(config)
    calibration = quantization.inputs.get("calibration")
    trajectory = {} if calibration is None else {"trajectory": calibration.inputs["trajectory"]}
    curves = CurvesStage.of(quantization, heldout)
    return {**trajectory, **quantization.inputs, "quantization": quantization, "heldout": heldout, "curves": curves}


def _inside(config: Config, samples: SamplesStage, full_precision: SamplesStage, made: dict[str, Stage]) -> dict[str, Stage]:
    """What looks at the quantized network and its images beside full precision's."""
    stages: dict[str, Stage] = {"fidelity": FidelityStage.of(samples, full_precision)}
    if config.inspection.lpips:
        stages["perceptual"] = PerceptualStage.of(Path(config.inspection.lpips), samples, full_precision)
    if config.inspection.rows:
        heldout = heldout_trajectory(config)
        stages["activations"] = ActivationsStage.of(config, heldout)
        stages["layers"] = LayersStage.of(config, made["quantization"], heldout)
    return stages


def _conditions(samples: SamplesStage, quantized: dict[str, Stage]) -> dict[str, Stage]:
    """What each noise stream is asked for; where several are asked for the same, the first alone."""
    readers = {"": samples, "calibration_": quantized.get("trajectory"), "heldout_": quantized.get("heldout")}
    made: dict[str, Stage] = {}
    for prefix, reader in readers.items():
        stage = reader.inputs.get("conditions") if reader else None
        if stage is not None and stage.key not in {one.key for one in made.values()}:
            made[f"{prefix}conditions"] = stage
    return made
