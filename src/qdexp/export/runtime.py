"""ONNX Runtime: an exported network as it runs there, held against the simulated one."""

from dataclasses import dataclass
from pathlib import Path

import onnxruntime
import torch
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp.calling import estimate_of
from qdexp.errors import UserError
from qdexp.export.graph import feeds
from qdexp.quant.blocks import Batch, call

APART = 0.02
"""Of the output: on average no more than this lies between both, or the file is no good. Roundings that go to the other of two
levels, since last bits differ, make less; a wrong grid makes more."""
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
        self._session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])

    def __call__(self, batch: Batch) -> Tensor:
        """What the network predicts of a batch: x_t, t and named conditions."""
        return torch.from_numpy(self._session.run(None, feeds(batch))[0])


@dataclass(frozen=True)
class Difference:
    """Between two outputs, in units of the first one's root mean square: ``mean`` of the magnitudes, and the ``largest``."""

    mean: float
    largest: float

    @classmethod
    def between(cls, one: Tensor, other: Tensor) -> "Difference":
        """Of two tensors of the same shape."""
        apart = (one - other).abs() / one.square().mean().sqrt()
        return cls(float(apart.mean()), float(apart.max()))

    def __str__(self) -> str:
        return f"{self.mean:.1e} on average, {self.largest:.1e} at most"


@dataclass(frozen=True)
class Held:
    """``runtime``: ONNX Runtime against the simulated network; ``own``: that against itself, one row at a time, which changes
    the last bits of its products too."""

    runtime: Difference
    own: Difference


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
    alone = torch.cat([estimate_of(call(network, _row(batch, row))) for row in range(len(expected))])
    if not found.mean <= APART:  # NaN too
        raise UserError(f"--to onnx: ONNX Runtime {onnxruntime.__version__} and the simulated network differ by {found} of the "
                        f"output, which no rounding explains: no file is left; please report it")  # fmt: skip
    return Held(found, Difference.between(expected, alone))


def _row(batch: Batch, row: int) -> Batch:
    one: Batch = pytree.tree_map(lambda values: values[row : row + 1], batch)
    return one
