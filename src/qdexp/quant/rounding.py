"""Weight rounding: which of its two neighbours on the grid a weight becomes.

A rounding is a function (weight, qparams, scheme) -> integers of the weight's shape, dtype `scheme.dtype`.
"""

from collections.abc import Callable
from importlib import import_module

from torch import Tensor

from qdexp.errors import UserError
from qdexp.quant.affine import QParams, quantize
from qdexp.quant.scheme import Scheme

Rounding = Callable[[Tensor, QParams, Scheme], Tensor]


def nearest(weight: Tensor, qparams: QParams, scheme: Scheme) -> Tensor:
    """Each weight to the nearest level."""
    return quantize(weight, qparams, scheme)


ROUNDINGS: dict[str, Rounding] = {"nearest": nearest}


def resolve(name: str) -> Rounding:
    """The rounding called `name`: one of `ROUNDINGS`, or the dotted path of a function of your own.

    Raises UserError if there is none.
    """
    if name in ROUNDINGS:
        return ROUNDINGS[name]
    module, _, function = name.rpartition(".")
    try:
        rounding: Rounding = getattr(import_module(module), function)
    except (ImportError, AttributeError, ValueError):
        known = ", ".join([*ROUNDINGS, "adaround", "gptq"])  # which need rows, see their modules
        raise UserError(f"quantizer.rounding={name}: choose {known}, or the dotted path of an importable function") from None
    return rounding
