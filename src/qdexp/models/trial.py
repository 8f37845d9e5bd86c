"""Whether the network can be called as the sampler calls it, and returns what that reads: tried on one row, before any work.

On the meta device first, where nothing is computed. A network that cannot run there, since it asks for values, runs on the CPU
with the numbers that its constructor draws.
"""

from typing import Any

import torch
from torch import Tensor, nn

from qdexp import models
from qdexp.calling import call, estimate_of
from qdexp.config import Model
from qdexp.errors import UserError
from qdexp.models.conditions import example_row, has_example


def check(model: Model) -> None:
    """Raises UserError where the network raises, or returns no noise of x_t's shape.

    Of conditions of the user's own kind, whose shapes ``model.example`` does not tell, nothing is known before they are made.
    """
    if not has_example(model):
        return
    try:
        returned = _called(models.skeleton(model).to("meta"), model)
    except Exception:  # whatever the forward of anybody's network does not like, values that are missing among it
        try:
            returned = _called(models.drawn(model), model)
        except UserError:
            raise
        except Exception as error:
            why = f"{type(error).__name__}: {' '.join(str(error).split())}".removesuffix(": ")
            raise UserError(f"model.network: called with x_t of model.shape, {[1, *model.shape]}, it raises {why}; "
                            f"{_fix(error)}") from error  # fmt: skip
    _check_returned(returned, model)


@torch.no_grad()
def _called(network: nn.Module, model: Model) -> Any:
    x_t, t, named = example_row(network.eval(), model)
    return call(network, x_t, t, named)


def _fix(error: Exception) -> str:
    if isinstance(error, TypeError):
        return "say by model.condition what else it takes, and by model.example of which shapes"
    return "change model.shape (sides that it can halve, for a U-Net), or the network"


def _check_returned(returned: Any, model: Model) -> None:
    channels, *sides = model.shape
    wanted = [(1, count, *sides) for count in (channels, 2 * channels)]
    try:
        found = estimate_of(returned)
    except (TypeError, StopIteration):
        found = returned
    if not isinstance(found, Tensor) or tuple(found.shape) not in wanted or not found.is_floating_point():
        told = f"{list(found.shape)} of {found.dtype}" if isinstance(found, Tensor) else type(found).__name__
        raise UserError(f"model.network: returns {told} for x_t {[1, *model.shape]}; it has to return numbers of that "
                        f"shape, or of twice the channels where it learned a variance too; change model.shape, or the "
                        f"network")  # fmt: skip
