"""Behaviour of a quantized network when it is saved, loaded, copied or cast like any other network of torch.

state_dict          the dequantized weights under the names that they had, in the coordinates of the network that was
                    quantized and with what runs beside them, and nothing else of quantization
load_state_dict     the same weights again: others would not be those that the integers stand for
half, bfloat16, to  everything but the constants of the grids, which stay as exact as they are
deepcopy            the whole network
pickle, torch.save  refused
"""

import warnings
from abc import abstractmethod
from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import partial
from pathlib import Path
from typing import Any, Self

import torch
from torch import Tensor, nn

from qdexp.errors import UserError

SAME = 1e-4
"""The largest relative distance of two weights that were computed from the same levels."""


class Exact(nn.Module):
    """A module of which some buffers lose nothing when it is cast: a scale in half precision is another grid, and a quantizer
    that computes with one in float32, or wider, rounds values of any dtype to the same grid."""

    _exact: tuple[str, ...]
    """The names of the tensors that are kept exactly."""

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        before = {name: value for name in self._exact if (value := getattr(self, name)) is not None}
        super()._apply(fn, recurse)
        for name, value in before.items():
            now = getattr(self, name)
            dtype = torch.promote_types(now.dtype, torch.float32) if value.is_floating_point() else value.dtype
            if now.dtype != dtype:
                setattr(self, name, value.to(now.device, dtype))
        return self


class Unpickled(nn.Module):
    """A module that is copied, but not pickled.

    A pickle has classes by their names. Those of quantized modules are made while a program runs, and what is in them only this
    version of the code would understand: packed checkpoints are there for that.
    """

    def __reduce_ex__(self, protocol: Any) -> Any:
        raise UserError("a quantized network cannot be pickled, nor saved whole by torch.save: to hand it on copy the folder "
                        "of its checkpoint, which qdexp.load reads; state_dict() has its weights, dequantized")  # fmt: skip

    def __copy__(self) -> Self:
        copied = object.__new__(type(self))
        copied.__setstate__(self.__getstate__())
        return copied

    def __deepcopy__(self, memo: dict[int, Any]) -> Self:
        memo[id(self)] = copied = object.__new__(type(self))
        copied.__setstate__(deepcopy(self.__getstate__(), memo))
        return copied


class WithIntegers(Exact, Unpickled):
    """A layer whose weight, once there are integers, is what these stand for."""

    _exact = ("weight_int", "weight_scale", "weight_zero_point")
    weight: Tensor
    weight_int: Tensor | None

    @abstractmethod
    def effective_weight(self) -> Tensor:
        """The weight of a plain layer that computes the same."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        if self.weight_int is not None:
            destination[f"{prefix}weight"] = self.effective_weight()

    def _load_from_state_dict(self, state: Mapping[str, Any], prefix: str, *details: Any) -> None:
        given = state.get(f"{prefix}weight")
        if self.weight_int is not None and isinstance(given, Tensor) and not self._holds(given):
            raise UserError(f"{prefix}weight: its layer is quantized and takes no other weights; load these into the "
                            f"full-precision network, and quantize that")  # fmt: skip
        if self.weight_int is not None and given is not None:
            state = {**state, f"{prefix}weight": self.weight}  # its own coordinates are others
        super()._load_from_state_dict(state, prefix, *details)

    def _holds(self, weight: Tensor) -> bool:
        own = self.effective_weight()
        if weight.shape != own.shape:
            return False
        same, given = own is self.weight, weight.to(own)
        return torch.equal(given, own) if same else torch.allclose(given, own, SAME, SAME * float(own.abs().max()))


def say_what_is_saved(network: nn.Module, folder: Path) -> None:
    """Lets ``network``, read from the checkpoint in ``folder``, say at ``state_dict`` what that is, once in a process."""
    network.register_state_dict_pre_hook(partial(_say, folder))


def _say(folder: Path, *_: Any) -> None:
    warnings.warn(f"what is saved are dequantized weights in floating point, without the grids of activations; to hand the "
                  f"quantized network on copy the folder {folder}, which qdexp.load reads", stacklevel=2)  # fmt: skip
