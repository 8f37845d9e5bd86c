"""Block-wise learning: learn a block, judge it, keep it, continue with the next.

A full-precision and a quantized stream of the calibration set advance together. At each block the quantized stream gives the
inputs and the full-precision one the targets. What was learned is kept only where it makes the error on the held-out rows
smaller, and is written to a file of its own at once: a killed run continues at the block where it stopped, and ends with the
same bits.
"""

import hashlib
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from qdexp import device as devices
from qdexp import files, lightning
from qdexp.config.learning import BlockWise, ScaleLearning, WeightLearning
from qdexp.config.memory import Memory
from qdexp.errors import UserError
from qdexp.quant.blocks import Batch, Rows, run
from qdexp.quant.cache import RowCache
from qdexp.quant.context import knowing
from qdexp.quant.streams import Stream, streaming
from qdexp.recon import result
from qdexp.recon.inner import running
from qdexp.recon.learning import Reconstruction, Samples, ScaleReconstruction, Site, State, WeightReconstruction
from qdexp.recon.memory import budgets
from qdexp.recon.progress import BlockProgress
from qdexp.recon.result import BlockErrors
from qdexp.recon.second_order import round_block

Settings = WeightLearning | ScaleLearning
Batches = Sequence[Batch]
_PARTS = ".{}-{}.safetensors"
"""Hidden: the store drops them once the whole result is in its place, and not before."""
_STATE, _ERRORS = "state.", "errors"


@dataclass(frozen=True)
class _Task:
    """A block to learn from all rows of its site. `start`: its relative squared error before, on rows that only judge."""

    site: Site
    name: str
    start: float
    progress: BlockProgress


@dataclass(frozen=True)
class _Way:
    """The way in which a block's state is found: by one step after another, each from the best so far. `dtype`: the type of the
    floats that are learned from; `paired`: whether the arguments of the full-precision block stand beside them."""

    kind: type[Reconstruction]
    steps: Sequence[Callable[[_Task], State]]
    dtype: torch.dtype | None = None
    paired: bool = False


class Walk:
    """Learns a network block by block, whose `blocks` are in execution order, see `blocks_of`. `full`: the full-precision
    network; `folder`: keeps the blocks that are finished; `memory`: where rows may lie."""

    def __init__(
        self,
        network: nn.Module,
        full: nn.Module,
        blocks: Mapping[str, Sequence[bool]],
        options: BlockWise,
        seed: int,
        folder: Path,
        memory: Memory = Memory(),  # noqa: B008 - frozen
    ) -> None:
        self.network, self.full, self.blocks = network, full, blocks
        self.options, self.seed, self.folder, self.memory = options, seed, folder, memory

    def learn_weights(self, batches: Batches) -> None:
        """The rounding of all weights, from nearest rounding on or by way of GPTQ."""
        assert isinstance(self.options, WeightLearning)
        learn = partial(self._fit, WeightReconstruction, self.options)
        paired = self.options.start == "gptq"
        self._walk(
            _Way(WeightReconstruction, [self._round, learn] if paired else [learn], _dtype(self.options), paired), batches
        )

    def round_weights(self, batches: Batches) -> None:
        """Round the weights of all blocks by GPTQ: in one pass, without iterations."""
        self._walk(_Way(WeightReconstruction, [self._round], paired=True), batches)

    def learn_scales(self, batches: Batches) -> None:
        """The scales of all activations, from the observed ranges on."""
        assert isinstance(self.options, ScaleLearning)
        learn = partial(self._fit, ScaleReconstruction, self.options)
        self._walk(_Way(ScaleReconstruction, [learn], _dtype(self.options)), batches)

    def _round(self, task: _Task) -> State:
        state = round_block(task.site, self._seed(task.name))
        task.site.exact = None  # no later step reads it: its room is for what the iterations read
        return state

    def _walk(self, way: _Way, batches: Batches) -> None:
        results: list[BlockErrors] = []
        _require_finite(batches)
        if not any(way.kind.state(self.network.get_submodule(name)) for name in self.blocks):
            return  # all of it is left in floating point
        device = batches[0][0].device
        with (
            BlockProgress(way.kind.title, len(self.blocks)) as progress,
            RowCache(budgets(self.memory, device, self.folder), device, (self.full, self.network)) as cache,
            streaming(self.full, list(self.blocks), batches, cache) as full,
            streaming(self.network, list(self.blocks), batches, cache) as quantized,
        ):
            for number, name in enumerate(self.blocks):
                progress.enter(name)
                block, path = self.network.get_submodule(name), self.folder / _PARTS.format(way.kind.part, f"{number:04d}")
                learns, done = bool(way.kind.state(block)), _read(path, name)
                if learns and done is None:
                    done = self._learn(way, *self._sites(way, name, full, quantized, cache), name, progress)
                    _write(path, *done)
                else:
                    full.advance(collect=False)
                if learns and done is not None:
                    state, errors = done
                    way.kind.restore(block, {part: value.to(device) for part, value in state.items()})
                    results.append(errors)
                quantized.advance(collect=False)
        result.write(self.folder, way.kind.title, results)

    def _sites(self, way: _Way, name: str, full: Stream, quantized: Stream, cache: RowCache) -> tuple[Site, Site]:
        """The rows that are learned from, floats as the way wants them, and those that only judge. The full-precision stream
        goes on for them; what it has collected is let go here, before anything is learned."""
        block, original, has_rows = self.network.get_submodule(name), self.full.get_submodule(name), self.blocks[name]
        rows = slice(-self.options.heldout), slice(-self.options.heldout, None)
        try:
            exact = Rows(full.calls, has_rows, full.sizes, cache, rows[0]) if way.paired else None
            outputs = [_of_rows(parts, full.sizes) for parts in zip(*full.advance(), strict=True)]
            if not any(outputs):
                raise ValueError("returns no tensor that has an entry for each row")
            kept = [
                (
                    Rows(quantized.calls, has_rows, quantized.sizes, cache, own, kind, quantized.states),
                    [None if parts is None else cache.join(parts, own, kind) for parts in outputs],
                )
                for own, kind in zip(rows, (way.dtype, None), strict=True)
            ]
        except ValueError as error:
            raise UserError(f"model.network: {name} {error}; it cannot be reconstructed block by block") from error
        batch = max(full.sizes)  # what passes through the network may run through a block
        site, heldout = (Site(block, original, *own, reader=cache.reader, batch=batch) for own in kept)
        site.exact = exact
        return site, heldout

    def _learn(self, way: _Way, site: Site, heldout: Site, name: str, progress: BlockProgress) -> tuple[State, BlockErrors]:
        old, before = way.kind.state(site.block), self._error(heldout)
        if not math.isfinite(before):
            raise UserError(f"block {name}: its error under {way.kind.title} is {before} before anything is learned; "
                            f"the weights or the calibration rows hold values that are not finite")  # fmt: skip
        if before == 0:  # nothing to gain, and nothing to measure a loss against
            return old, BlockErrors(name, before, before)
        best, errors = old, BlockErrors(name, before, math.inf)
        for step in way.steps:
            way.kind.restore(site.block, best)
            learned = step(_Task(site, name, before, progress))
            way.kind.restore(site.block, learned)
            tried = BlockErrors(name, before, self._error(heldout))
            if tried.learned < errors.learned:
                best, errors = (learned if tried.kept else best), tried
        return best, errors

    def _fit(self, kind: type[Reconstruction], settings: Settings, task: _Task) -> State:
        """Learn a block's state in the iterations of `kind`."""
        site, device = task.site, task.site.device
        devices.require_arithmetic(device, settings.precision, settings.compile)  # a sweep may be planned elsewhere
        module = kind(site, settings, task.start)
        with devices.deterministic(f"block {task.name}"), running(site.block, settings) as module.run:
            samples = Samples(site, self._indices(len(site.rows), settings, task.name, device))
            lightning.fit(module, samples, device, task.progress, settings.precision)
        learned = module.to(device).learned()  # Lightning leaves it on the CPU
        module.release()
        samples.release()
        return learned

    def _indices(self, rows: int, settings: Settings, name: str, device: torch.device) -> Sequence[Tensor]:
        """Row indices of every iteration, in epochs of random order that depend on seed and block alone. In the host's memory:
        where rows lie there, or in files, they would have to be fetched from the device, which has the host wait for it."""
        generator = torch.Generator().manual_seed(self._seed(name))
        needed = settings.iterations * settings.batch
        epochs = [torch.randperm(rows, generator=generator) for _ in range(-(-needed // rows))]
        index = torch.cat(epochs)[:needed].view(settings.iterations, settings.batch)
        return (index.pin_memory() if device.type == "cuda" else index).unbind()

    def _seed(self, name: str) -> int:
        """The seed of what is random in a block: it depends on the cell's seed and the block alone."""
        return int.from_bytes(hashlib.sha256(f"{self.seed} {name}".encode()).digest()[:4], "big")

    @torch.no_grad()
    def _error(self, site: Site) -> float:
        """The block's relative squared error on the site's rows, as it is."""
        sums = torch.zeros(2, dtype=torch.float64, device=site.device)
        for sample in site.ahead(site.take, site.parts()):
            with knowing(site.block, sample.state):
                found = run(site.block, sample.call)
            for one, target in sample.measured(found):
                sums += torch.stack([(one - target).double().square().sum(), target.double().square().sum()])
        error, power = sums.tolist()
        return error / power if power else error


def _require_finite(batches: Batches) -> None:
    """One row that is not would spoil what is learned, and the rows that judge might not show it."""
    numbers = (leaf for leaf in pytree.tree_leaves(batches) if isinstance(leaf, Tensor) and leaf.is_floating_point())
    if not bool(torch.stack([leaf.isfinite().all() for leaf in numbers]).all()):
        raise UserError("calib: the calibration rows hold values that are not finite; the full-precision network made them, so "
                        "check model.weights and model.schedule")  # fmt: skip


def _of_rows(parts: tuple[Tensor, ...], sizes: Sequence[int]) -> list[Tensor] | None:
    """An output of all batches, where it has an entry for each of their rows; a loss beside it has none."""
    fits = all(part.ndim > 0 and len(part) == size for part, size in zip(parts, sizes, strict=True))
    return list(parts) if fits else None


def _dtype(options: Settings) -> torch.dtype:
    """The dtype of the rows that iterations read."""
    dtype: torch.dtype = getattr(torch, options.precision)
    return dtype


def _write(path: Path, state: State, errors: BlockErrors) -> None:
    tensors = {_STATE + name: tensor.cpu().contiguous() for name, tensor in state.items()}
    files.write_tensors(path, tensors | {_ERRORS: torch.tensor([errors.before, errors.learned], dtype=torch.float64)})


def _read(path: Path, block: str) -> tuple[State, BlockErrors] | None:
    """Read a file of `_write`; None where there is none, a truncated one, or another file."""
    try:
        tensors = load_file(path)
        before, learned = tensors.pop(_ERRORS).tolist()
    except (OSError, SafetensorError, KeyError, ValueError, TypeError):
        return None
    return {name.removeprefix(_STATE): tensor for name, tensor in tensors.items()}, BlockErrors(block, before, learned)
