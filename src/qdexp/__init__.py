"""qdexp: sweeps of post-training-quantization experiments on diffusion models."""

import logging
from collections.abc import Collection
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pandas import DataFrame
    from torch.nn import Module

    from qdexp.backends import Backend

for _name in ("diffusers.quantizers.torchao.torchao_quantizer", "torch.utils._pytree"):
    # diffusers loads torchao wherever it is installed; what both then complain of is nothing that a user of ours can change
    logging.getLogger(_name).setLevel(logging.ERROR)


def load(
    checkpoint: str | Path,
    trust: Collection[str] = (),
    backend: "str | Backend" = "simulated",
    out: str | Path = "outputs",
) -> "Module":
    """Load the quantized network of a checkpoint, on the CPU and in eval mode.

    It takes the place of the original in a diffusers pipeline: same class, same call, same outputs as when it was saved. Its
    ``state_dict`` and ``save_pretrained`` give its weights, dequantized, for the original class to load.

    Args:
        checkpoint: The folder of a checkpoint, a record, or the name of a cell: its own, or that in a table or in the lines of
            a run. A folder may come from anybody: nothing in it runs code or opens another file.
        trust: Full names of the classes that it may build beside the networks of diffusers and qdexp, and paths among their
            arguments, such as ``["mine.TinyNet"]``.
        backend: The arithmetic in which the network runs: the name of one of qdexp's backends, or an instance of any. With
            another than ``simulated``, class and outputs may differ, as the backend says.
        out: The output folder in which a cell is looked up.

    Returns:
        The network; with ``simulated`` it computes in floating point on the quantized grid.

    Raises:
        qdexp.errors.UserError: The folder holds no whole checkpoint, or one with a class that is not trusted; there is no such
            cell, or more than one, or it is in full precision; or there is no such backend.
    """
    from qdexp.backends import choice  # torch takes seconds to load
    from qdexp.models import checkpoint as checkpoints
    from qdexp.quant.handing import say_what_is_saved
    from qdexp.report import lookup

    chosen, folder = choice.named(backend), lookup.checkpoint(checkpoint, Path(out))
    network = checkpoints.load(folder, {trust} if isinstance(trust, str) else trust)
    say_what_is_saved(network, folder)
    return chosen.lower(network).network


def load_records(place: str | Path = "outputs") -> "DataFrame":
    """Read the records of an output folder: one row per cell, every number with the ends of its interval.

    Args:
        place: An output folder, or a folder of records beside its ``store/``.

    Returns:
        The table; see ``qdexp.report.frame.load_records`` for its columns.

    Raises:
        qdexp.errors.UserError: There is no record, or one that is corrupt.
    """
    from qdexp.report.frame import load_records as load_frame  # reports need libraries that nothing else does

    return load_frame(place)
