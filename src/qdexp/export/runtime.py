"""ONNX Runtime: an exported network as it runs there, held against the simulated one."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn

from qdexp.calling import estimate_of
from qdexp.errors import UserError
from qdexp.export.graph import feeds
from qdexp.quant.blocks import Batch, call
from qdexp.quant.network import activation_quantizers

APART, TIMES = 0.02, 4
"""The mean difference that a file may have, as a share of the output, or as a multiple of the effect of last bits; with more
the file is no good."""
LAST_BITS = 2.0**-21
"""The relative change of a number in float32 by another order of sums, or by a division in place of a reciprocal."""
_ERRORS = 3
"""The severity of what ONNX Runtime may say."""


class Runtime:
    """A session of ONNX Runtime on the CPU, with its default options.

    Args:
        path: The file.
        threads: How many a product may take; None: as many as it likes.
        optimized: Where to write the graph that it makes of the file's.
    """

    def __init__(self, path: Path, threads: int | None = None, optimized: Path | None = None) -> None:
        options = onnxruntime.SessionOptions()
        options.log_severity_level = _ERRORS
        if threads is not None:
            options.intra_op_num_threads = threads
        if optimized is not None:
            options.optimized_model_filepath = str(optimized)
        with _told():
            self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, batch: Batch) -> Tensor:
        """Return the network's prediction for a batch: x_t, t and named conditions."""
        with _told():
            return torch.from_numpy(self._session.run(None, feeds(batch))[0])


@contextmanager
def _told() -> Iterator[None]:
    """Raises UserError where ONNX Runtime fails, whose exceptions have no class in common."""
    try:
        yield
    except Exception as error:
        told = " ".join(str(error).split())
        raise UserError(f"--to onnx: ONNX Runtime {onnxruntime.__version__} cannot run the file ({told}): none is left; please "
                        f"report it")  from error  # fmt: skip


@dataclass(frozen=True)
class Difference:
    """The difference between two outputs, in units of the first one's root mean square: the ``mean`` of its magnitude, and the
    ``largest``."""

    mean: float
    largest: float

    @classmethod
    def between(cls, one: Tensor, other: Tensor) -> "Difference":
        """Compute the difference of two tensors of the same shape."""
        apart = (one - other).abs() / one.square().mean().sqrt()
        return cls(float(apart.mean()), float(apart.max()))

    def __str__(self) -> str:
        return f"{self.mean:.1e} on average, {self.largest:.1e} at most"


@dataclass(frozen=True)
class Held:
    """``runtime``: ONNX Runtime against the simulated network; ``last_bits``: that against itself, where the last bits change
    of all that is rounded, so that some of it falls to the other of two levels, as it may in any other runtime."""

    runtime: Difference
    last_bits: Difference


@torch.inference_mode()
def held(network: nn.Module, runtime: Runtime, batch: Batch) -> Held:
    """Run both on a batch.

    Args:
        network: Simulated, on the CPU.
        runtime: The same network, exported.
        batch: x_t, t and named conditions.

    Raises:
        qdexp.errors.UserError: They compute different things.
    """
    expected: Tensor = estimate_of(call(network, batch))
    found = Difference.between(expected, runtime(batch))
    last_bits = Difference.between(expected, _with_other_last_bits(network, batch))
    if not found.mean <= max(APART, TIMES * last_bits.mean):  # NaN too
        raise UserError(f"--to onnx: ONNX Runtime {onnxruntime.__version__} and the simulated network differ by {found} of the "
                        f"output, which no rounding explains: no file is left; please report it")  # fmt: skip
    return Held(found, last_bits)


def _with_other_last_bits(network: nn.Module, batch: Batch) -> Tensor:
    """The output where all that is rounded to a grid is larger by ``LAST_BITS``."""

    def enlarged(_: nn.Module, given: tuple[Tensor]) -> tuple[Tensor]:
        return (given[0] * (1 + LAST_BITS),)

    with ExitStack() as stack:
        for _, quantizer in activation_quantizers(network):
            stack.callback(quantizer.register_forward_pre_hook(enlarged).remove)
        made: Tensor = estimate_of(call(network, batch))
        return made
