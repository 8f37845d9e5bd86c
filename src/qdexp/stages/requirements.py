"""What must hold before anything of a cell is quantized: all that can be known without its weights."""

from contextlib import suppress

from hydra.errors import InstantiationException
from hydra.utils import instantiate

from qdexp import device as devices
from qdexp import models
from qdexp.config import UNTOUCHED, Config
from qdexp.errors import UserError
from qdexp.models import released
from qdexp.models.conditions import example_row
from qdexp.quant.architecture import check_plain
from qdexp.quant.ranges import RangeEstimator
from qdexp.quant.rounding import resolve
from qdexp.quant.shortcuts import split_sizes
from qdexp.stages.conversion import description_of, warn
from qdexp.stages.released import released_file


def check(config: Config) -> None:
    """Raises where no checkpoint can keep the network, the quantizer's parts cannot be made, ``quant.layers`` or
    ``quantizer.split`` finds no layer, or there are too few rows to learn from; or where a released checkpoint is not what the
    other options say."""
    quantizer = config.quantizer
    check_plain(config.model.network)
    if quantizer.released:
        _check_released(config)
        _check_coverage(config)
        return
    for part, target in (("weight", quantizer.weight.range), ("act", quantizer.act.range)):
        try:
            estimator = instantiate(target)
        except InstantiationException as error:
            raise UserError(f"quantizer.{part}.range: {' '.join(str(error).split())}") from error
        if not isinstance(estimator, RangeEstimator):
            raise UserError(f"quantizer.{part}.range._target_={target['_target_']}: no range estimator; name a subclass of "
                            f"qdexp.quant.ranges.RangeEstimator")  # fmt: skip
    if not quantizer.learns_rounding:
        resolve(quantizer.rounding)
    rows = config.calib.timesteps * config.calib.rows
    if quantizer.learns and config.recon.heldout >= rows:
        raise UserError(f"recon.heldout={config.recon.heldout}: leaves none of the {rows} rows of the calibration set to learn "
                        f"from; lower it, or raise calib.rows")  # fmt: skip
    if quantizer.learns:
        devices.require_arithmetic(devices.resolve(config.device), config.recon.precision, config.recon.compile)
    if quantizer.split != "off":
        _check_split(config)
    _check_coverage(config)


def _check_coverage(config: Config) -> None:
    """Warns where little of what the bits ask for would be quantized; raises where nothing would be."""
    description = description_of(config.model)
    if description is not None:
        found = description.coverage(config.quant)
        found.require_any(config.quant.label)
        warn(config.model, config.quant, found)


def _check_released(config: Config) -> None:
    quant = config.quant
    for option, value in (("first_last_bits", quant.first_last_bits), ("layers", quant.layers)):
        if value is not None:
            raise UserError(f"quant.{option}={value}: in a released checkpoint all layers have the same bits; give "
                            f"quant.{option}=null")  # fmt: skip
    if UNTOUCHED == quant.softmax_bits != quant.act_bits:
        raise UserError(f"quant.softmax_bits={UNTOUCHED}: in a released checkpoint the softmax is quantized; give 8, for "
                        f"Stable Diffusion 16")  # fmt: skip
    released.check(config.model, released_file(config), quant)


def _check_split(config: Config) -> None:
    network = models.skeleton(config.model)
    with suppress(RuntimeError, TypeError):  # asks for values, or for conditions of its own: the stage itself will tell
        split_sizes(network, example_row(network, config.model.shape), config.quantizer.split)
