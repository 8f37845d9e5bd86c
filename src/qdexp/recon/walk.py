"""The walk from block to block: learn, judge, keep, go on.

A full-precision and a quantized stream of the calibration set advance together. At each block the quantized stream gives the
inputs and the full-precision one the targets. What was learned is kept only where it makes the error on the held-out rows
smaller, and is written to a file of its own at once: a killed walk goes on at the block where it stopped, and ends with the
same bits.
"""

import hashlib
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import cast

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from qdexp import device as devices
from qdexp import files
from qdexp.config import Recon, ScaleLearning, WeightLearning
from qdexp.errors import UserError
from qdexp.quant.blocks import Batch, Rows, run
from qdexp.quant.memory import Memory
from qdexp.quant.streams import streaming
from qdexp.recon import result
from qdexp.recon.learning import Reconstruction, ScaleReconstruction, Site, State, WeightReconstruction
from qdexp.recon.progress import BlockProgress
from qdexp.recon.result import BlockErrors
from qdexp.recon.second_order import round_block

Settings = WeightLearning | ScaleLearning
Batches = Sequence[Batch]
_PARTS = "{}-{}.safetensors"
_STATE, _ERRORS = "state.", "errors"


@dataclass(frozen=True)
class _Task:
    """A block to learn from the first `rows` rows of its site. `start`: its relative squared error on them before."""

    site: Site
    name: str
    rows: int
    start: float
    progress: BlockProgress


class Walk:
    """Walks through a network whose `blocks` are in execution order. `full`: the full-precision network; `folder`: keeps the
    blocks that are finished."""

    def __init__(
        self, network: nn.Module, full: nn.Module, blocks: Sequence[str], recon: Recon, seed: int, folder: Path
    ) -> None:
        self.network, self.full, self.blocks = network, full, list(blocks)
        self.recon, self.seed, self.folder = recon, seed, folder

    def learn_weights(self, batches: Batches) -> None:
        """The rounding of all weights, from nearest rounding on; activations must not be quantized yet."""
        self._walk(WeightReconstruction, partial(self._fit, WeightReconstruction, self.recon.weights), batches)

    def round_weights(self, batches: Batches) -> None:
        """The same by GPTQ: in one pass, without iterations."""
        self._walk(WeightReconstruction, lambda task: round_block(task.site, task.rows, self.recon.batch), batches)

    def learn_scales(self, batches: Batches) -> None:
        """The scales of all activations, from the observed ranges on."""
        self._walk(ScaleReconstruction, partial(self._fit, ScaleReconstruction, self.recon.scales), batches)

    def clear(self) -> None:
        """Remove the files of single blocks, once the whole is kept elsewhere."""
        for kind in (WeightReconstruction, ScaleReconstruction):
            for path in self.folder.glob(_PARTS.format(kind.part, "*")):
                path.unlink()

    def _walk(self, kind: type[Reconstruction], find: Callable[["_Task"], State], batches: Batches) -> None:
        results: list[BlockErrors] = []
        if not any(kind.state(self.network.get_submodule(name)) for name in self.blocks):
            return  # all of it is left in floating point
        limit = None if self.recon.cache_gb is None else int(self.recon.cache_gb * 1e9)
        with (
            BlockProgress(kind.title, len(self.blocks)) as progress,
            Memory(limit, self.folder, (self.full, self.network)) as memory,
            streaming(self.full, self.blocks, batches, memory) as full,
            streaming(self.network, self.blocks, batches, memory) as quantized,
        ):
            for number, name in enumerate(self.blocks):
                progress.enter(name)
                block, original = self.network.get_submodule(name), self.full.get_submodule(name)
                outputs = full.advance()
                if kind.state(block):
                    path = self.folder / _PARTS.format(kind.part, f"{number:04d}")
                    done = _read(path, name)
                    if done is None:
                        rows = Rows(quantized.calls, quantized.sizes, memory)
                        site = Site(block, original, rows, memory.join(outputs))
                        done = self._learn(kind, find, site, name, progress)
                        _write(path, *done)
                        del site, rows
                    state, errors = done
                    kind.restore(block, {part: value.to(outputs[0].device) for part, value in state.items()})
                    results.append(errors)
                del outputs
                quantized.advance(collect=False)
        result.write(self.folder, kind.title, results)

    def _learn(
        self, kind: type[Reconstruction], find: Callable[["_Task"], State], site: Site, name: str, progress: BlockProgress
    ) -> tuple[State, BlockErrors]:
        rows = len(site.rows)
        learning, heldout = slice(0, rows - self.recon.heldout), slice(rows - self.recon.heldout, rows)
        old, start, before = kind.state(site.block), self._error(site, learning), self._error(site, heldout)
        if not math.isfinite(start + before):
            raise UserError(f"block {name}: its error under {kind.title} is {start + before} before anything is learned; "
                            f"the weights or the calibration rows hold values that are not finite")  # fmt: skip
        if 0 in (start, before):  # nothing to gain, or nothing to measure a loss against
            return old, BlockErrors(name, before, before)
        learned = find(_Task(site, name, learning.stop, start, progress))
        kind.restore(site.block, learned)
        errors = BlockErrors(name, before, self._error(site, heldout))
        return learned if errors.kept else old, errors

    def _fit(self, kind: type[Reconstruction], settings: Settings, task: "_Task") -> State:
        """What the iterations of `kind` learn of a block."""
        device = task.site.targets.device
        module = kind(task.site, settings, task.start)
        devices.fit(module, self._batches(task.rows, settings.iterations, task.name, task.site), device, task.progress)
        learned = module.to(device).learned()  # Lightning leaves it on the CPU
        module.release()
        return learned

    def _batches(self, rows: int, iterations: int, name: str, site: Site) -> DataLoader[Tensor]:
        """Row indices of every iteration, in epochs of random order that depend on seed and block alone."""
        digest = hashlib.sha256(f"{self.seed} {name}".encode()).digest()
        generator = torch.Generator().manual_seed(int.from_bytes(digest[:4], "big"))
        needed = iterations * self.recon.batch
        epochs = [torch.randperm(rows, generator=generator) for _ in range(-(-needed // rows))]
        index = torch.cat(epochs)[:needed].view(iterations, self.recon.batch).to(site.targets.device)
        return DataLoader(cast("Dataset[Tensor]", list(index.unbind())), batch_size=None)

    @torch.no_grad()
    def _error(self, site: Site, rows: slice) -> float:
        """The block's relative squared error on these rows, as it is."""
        sums = torch.zeros(2, dtype=torch.float64, device=site.targets.device)
        for start in range(rows.start, rows.stop, self.recon.batch):
            part = slice(start, min(start + self.recon.batch, rows.stop))
            target = site.targets[part]
            difference = run(site.block, site.rows.take(part)) - target
            sums += torch.stack([difference.double().square().sum(), target.double().square().sum()])
        error, power = sums.tolist()
        return error / power if power else error


def _write(path: Path, state: State, errors: BlockErrors) -> None:
    tensors = {_STATE + name: tensor.cpu().contiguous() for name, tensor in state.items()}
    files.write_tensors(path, tensors | {_ERRORS: torch.tensor([errors.before, errors.learned], dtype=torch.float64)})


def _read(path: Path, block: str) -> tuple[State, BlockErrors] | None:
    """What `_write` wrote, or None where there is none, or a torn one."""
    try:
        tensors = load_file(path)
    except (OSError, SafetensorError):
        return None
    before, learned = tensors.pop(_ERRORS).tolist()
    return {name.removeprefix(_STATE): tensor for name, tensor in tensors.items()}, BlockErrors(block, before, learned)
