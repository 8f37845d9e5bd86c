"""How the inputs and targets of every block are come by: streams pushed forward, against passes that start again.

Public code runs the network from its input anew for every block, twice: full precision up to the block's output, which is the
target, and the network quantized so far up to the block's input. Both ways the same rows are joined, and the same inner loop
learns from them.
"""

import copy
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from benchmarks.subject import Subject
from benchmarks.timing import Cost, interleaved, ratios, seconds
from qdexp.config.learning import WeightLearning
from qdexp.methods import recipe
from qdexp.quant.blocks import Batch, Call, Rows, call, outputs
from qdexp.quant.streams import streaming
from qdexp.recon.walk import Walk

HEADER = ["learned rounding of all blocks", "streams, s (CPU)", "restarting, s (CPU)", "ratio", "ratio of CPU times"]


class Feed(Protocol):
    """What `Stream` and `Restarts` have in common."""

    @property
    def calls(self) -> list[Call]:
        """Every batch's call of the next block."""

    @property
    def sizes(self) -> list[int]:
        """The rows of every batch."""

    def advance(self, collect: bool = True) -> list[tuple[Tensor, ...]]:
        """Go on to the next block; this one's outputs, if they are to be collected."""


Feeding = Callable[[nn.Module, Sequence[str], Sequence[Batch]], AbstractContextManager[Feed]]


class _Stopped(Exception):  # noqa: N818 - no error
    """Ends a pass; carries what was wanted of it."""


class Restarts:
    """Does what a `Stream` does by passes that start at the network's input and are stopped at the block."""

    def __init__(self, network: nn.Module, blocks: Sequence[str], batches: Sequence[Batch]) -> None:
        self._network, self._blocks, self._batches, self._position = network, blocks, batches, 0

    @property
    def calls(self) -> list[Call]:
        """Every batch's call of the next block, from passes that are stopped at its entrance."""

        def stop(_: nn.Module, args: Any, kwargs: Any) -> None:
            raise _Stopped((args, kwargs))

        return self._stopped(self._block.register_forward_pre_hook(stop, with_kwargs=True))

    @property
    def sizes(self) -> list[int]:
        """The rows of every batch."""
        return [len(batch[0]) for batch in self._batches]

    def advance(self, collect: bool = True) -> list[tuple[Tensor, ...]]:
        """Go on to the next block; this one's outputs, if they are to be collected, from passes that are stopped behind it."""

        def stop(_: nn.Module, args: Any, result: Any) -> None:
            raise _Stopped(outputs(result))

        found = self._stopped(self._block.register_forward_hook(stop)) if collect else []
        self._position += 1
        return found

    @property
    def _block(self) -> nn.Module:
        return self._network.get_submodule(self._blocks[self._position])

    @torch.no_grad()
    def _stopped(self, handle: Any) -> list[Any]:
        found: list[Any] = []
        with handle:
            for batch in self._batches:
                try:
                    call(self._network, batch)
                except _Stopped as stopped:
                    found.extend(stopped.args)
        return found


@contextmanager
def restarting(network: nn.Module, blocks: Sequence[str], batches: Sequence[Batch]) -> Iterator[Restarts]:
    """`Restarts` as a context, like `streaming`."""
    yield Restarts(network, blocks, batches)


def data_path(
    feeding: Feeding, full: nn.Module, network: nn.Module, blocks: Mapping[str, Sequence[bool]], batches: Sequence[Batch]
) -> None:
    """Join the inputs and targets of every block, as the walk does, and learn nothing."""
    with feeding(full, list(blocks), batches) as ahead, feeding(network, list(blocks), batches) as behind:
        for has_rows in blocks.values():
            for parts in zip(*ahead.advance(), strict=True):
                torch.cat(parts)
            Rows(behind.calls, has_rows, behind.sizes)
            behind.advance(collect=False)


def compare(subject: Subject, repetitions: int) -> list[list[Cost]]:
    """The costs of the data path alone, by streams and by restarting."""
    full, batches = subject.full(), subject.batches
    network, blocks = subject.rounded(full)
    return interleaved(
        repetitions,
        subject.device,
        lambda: data_path(streaming, full, network, blocks, batches),
        lambda: data_path(restarting, full, network, blocks, batches),
    )


def run(subject: Subject, repetitions: int) -> list[list[str]]:
    """Rows of the table: the data path alone, and with the inner loop, which is what a walk costs beyond its streams."""
    full, batches, config = subject.full(), subject.batches, subject.config
    network, blocks = subject.rounded(full)
    options = next((one.step for one in recipe.steps_of(config) if isinstance(one.step, WeightLearning)), WeightLearning())
    learning = [copy.deepcopy(network) for _ in range(repetitions)]

    def walk() -> None:
        with tempfile.TemporaryDirectory() as folder:
            Walk(learning.pop(), full, blocks, options, config.seed, Path(folder)).learn_weights(batches)

    streams, restarts, walks = interleaved(
        repetitions,
        subject.device,
        lambda: data_path(streaming, full, network, blocks, batches),
        lambda: data_path(restarting, full, network, blocks, batches),
        walk,
    )
    inner = [one.less(own) for one, own in zip(walks, streams, strict=True)]
    totals = [[path + loop for path, loop in zip(paths, inner, strict=True)] for paths in (streams, restarts)]
    rows = {"data path": [streams, restarts], "data path and inner loop": totals}
    return [[what, seconds(ours), seconds(theirs), *ratios(theirs, ours)] for what, (ours, theirs) in rows.items()]
