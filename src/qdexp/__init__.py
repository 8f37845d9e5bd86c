"""qdexp: sweeps of post-training-quantization experiments on diffusion models."""

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch.nn import Module


def load(checkpoint: str | Path) -> "Module":
    """The quantized network of a checkpoint folder, on the CPU and in eval mode.

    It takes the place of the original in a diffusers pipeline: same class, same call, same outputs as when it was saved.
    Raises qdexp.errors.UserError where the folder holds no whole checkpoint.
    """
    from qdexp.quant import checkpoint as checkpoints  # torch takes seconds to load

    return checkpoints.load(checkpoint)
