"""Runs real code on CUDA tensors that have no values, on a machine without a GPU; tensors on the CPU are real.

Tensors on two devices in one operation end in torch's own error, as on a GPU. What a GPU would feel is written down: for what
the host has to wait, how many kernels are launched, and how many bytes they read and write. Not to be had are values, backward
passes (autograd asks the driver), streams and pinned memory.
"""

import sys
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode, unset_fake_temporarily
from torch.utils import _pytree as pytree
from torch.utils._python_dispatch import TorchDispatchMode

import qdexp

PACKAGE = Path(qdexp.__file__).parent
WAITS = {"_local_scalar_dense", "nonzero", "masked_select", "equal", "unique_dim", "_unique2", "is_nonzero", "allclose"}
"""Operations whose results the host has to know."""
UNKNOWN = "_fake_quantize_per_tensor_affine_cachemask"
"""Torch cannot tell what it returns without values."""


@contextmanager
def fake_cuda() -> Iterator["FakeCuda"]:
    """While it lasts, the device ``cuda:0`` can be computed on."""
    gpu, generator = FakeCuda(), torch.Generator
    with pytest.MonkeyPatch.context() as patch, gpu.fake, gpu:
        patch.setattr(nn.Module, "_apply", _apply)
        patch.setattr(torch, "Generator", lambda *_, **__: generator())
        yield gpu


class CountedWaits(TorchDispatchMode):
    """Counts for what the host would wait, of all that is computed, backward passes too, with real tensors on the CPU.

    Copies to the host are none there, and not seen: computing without values (``meta``) finds these out.
    """

    def __init__(self) -> None:
        super().__init__()
        self.waits = self.operations = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        self.operations += 1
        self.waits += func._schema.name.partition("::")[2] in WAITS
        return func(*args, **(kwargs or {}))


class FakeCuda(TorchDispatchMode):
    """What a GPU would feel.

    Attributes:
        waits: How often the host waits, by the line of this package that makes it.
        launches: Kernels.
        moved: Bytes that these read and write.
    """

    def __init__(self) -> None:
        super().__init__()
        self.fake = FakeTensorMode(allow_non_fake_inputs=True)
        self.waits: Counter[str] = Counter()
        self.launches = self.moved = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = {name: value for name, value in (kwargs or {}).items() if name != "pin_memory"}
        given = pytree.tree_leaves((args, kwargs))
        if not any(isinstance(one, FakeTensor) or (isinstance(one, torch.device) and one.type == "cuda") for one in given):
            with unset_fake_temporarily():
                return func(*args, **kwargs)
        name, kept = func._schema.name.partition("::")[2], args[0] if args else None
        args, kwargs = pytree.tree_map(self._faked, (args, kwargs))
        inputs = _on_cuda((args, kwargs))
        if name in WAITS and inputs:
            self._wait()
        if name in ("equal", "allclose"):
            return True
        if name in ("_local_scalar_dense", "is_nonzero"):
            return vars(args[0]).get("answer", _anything(args[0].dtype))
        if func.namespace != "prim" and func._can_decompose():
            with self:  # what it is made of
                return func.decompose(*args, **kwargs)
        result = _fused(inputs, args[0]) if name.startswith(UNKNOWN) else func(*args, **kwargs)
        for one in pytree.tree_leaves(result):
            if isinstance(one, FakeTensor):
                vars(one)["answer"] = name == "all" if one.dtype == torch.bool else _anything(one.dtype)
                one.constant = None  # it would be computed with, on a device that is not there
        self._count(name, inputs, result, args, kwargs)
        if name == "copy_" and isinstance(kept, Tensor) and not isinstance(kept, FakeTensor):
            return kept.fill_(_anything(kept.dtype))
        if name == "_to_copy" and isinstance(result, Tensor) and result.device.type == "cpu":
            return _real(result)
        return result

    def _faked(self, one: Any) -> Any:
        if isinstance(one, Tensor) and not isinstance(one, FakeTensor):
            one = self.fake.from_tensor(one)
        if isinstance(one, FakeTensor):
            one.constant = None
        return one

    def _count(self, name: str, inputs: list[Tensor], result: Any, args: Any, kwargs: Any) -> None:
        outputs = _on_cuda(result)
        if name in ("_to_copy", "copy_") and inputs and not kwargs.get("non_blocking", len(args) > 2 and args[2]):
            target = args[0] if name == "copy_" else result
            if target.device.type == "cpu":
                self._wait()
        storages = {id(one.untyped_storage()) for one in inputs}
        is_view = bool(outputs) and not name.endswith("_") and all(id(one.untyped_storage()) in storages for one in outputs)
        if (inputs or outputs) and not is_view:
            self.launches += 1
            self.moved += sum(one.numel() * one.element_size() for one in (*inputs, *outputs))

    def _wait(self) -> None:
        frame: FrameType | None = sys._getframe(2)
        while frame is not None and PACKAGE not in Path(frame.f_code.co_filename).parents:
            frame = frame.f_back
        place = "nothing of this package" if frame is None else f"{Path(frame.f_code.co_filename).name}: {frame.f_code.co_name}"
        self.waits[place] += 1


def _apply(module: nn.Module, convert: Callable[[Tensor], Tensor], recurse: bool = True) -> nn.Module:
    """Torch's swaps the contents of two tensors, which those without values do not allow."""
    for child in module.children() if recurse else ():
        child._apply(convert)
    for name, value in module._parameters.items():
        if value is not None:
            module._parameters[name] = nn.Parameter(convert(value.detach()), value.requires_grad)
    for name, buffer in module._buffers.items():
        module._buffers[name] = None if buffer is None else convert(buffer)
    return module


def _on_cuda(tree: Any) -> list[Tensor]:
    return [one for one in pytree.tree_leaves(tree) if isinstance(one, Tensor) and one.device.type == "cuda"]


def _fused(inputs: list[Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """The rounded values, and a mask."""
    _, scale, zero_point, *_ = inputs
    assert (scale.dtype, zero_point.dtype) == (torch.float32, torch.int32)
    return torch.empty_like(x), torch.empty_like(x, dtype=torch.bool)


def _real(fake: Tensor) -> Tensor:
    with unset_fake_temporarily():
        return torch.empty_strided(fake.shape, fake.stride(), dtype=fake.dtype).fill_(_anything(fake.dtype))


def _anything(dtype: torch.dtype) -> bool | float | int:
    """A value with which most code goes on."""
    return False if dtype == torch.bool else 0.5 if dtype.is_floating_point else 1
