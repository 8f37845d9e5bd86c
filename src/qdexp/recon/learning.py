"""Learning of one block, as Lightning modules.

Both minimise the distance between the block's outputs, for its inputs in the network quantized so far, and the outputs of the
same block in the full-precision network (BRECQ, Li et al. 2021, arXiv 2102.05426, equation 10): first the rounding of the
weights, with activations in full precision; then, in a second pass with all weights rounded, the scales of the activations.

A block's *state* is what is learned of it: integers of the weights or scales of the activations, by name.
"""

import math
from abc import abstractmethod
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, ClassVar, NamedTuple, TypeVar

import pytorch_lightning as pl
import torch
from torch import Tensor, nn

from qdexp.config.learning import ScaleLearning, WeightLearning
from qdexp.quant.activations import ActivationQuantizer
from qdexp.quant.adaround import SoftRounding, undecided
from qdexp.quant.ahead import Reader, each
from qdexp.quant.blocks import Call, Rows, run
from qdexp.quant.context import CallState, knowing
from qdexp.quant.layers import QuantizedLayer
from qdexp.quant.stored import Stored
from qdexp.recon.inner import Run

State = dict[str, Tensor]
T = TypeVar("T")
Key = TypeVar("Key")


class Sample(NamedTuple):
    """Some rows of a block, on the device: its arguments, the call state of the rows, and its targets."""

    call: Call
    state: CallState
    targets: list[Tensor | None]

    def measured(self, found: Sequence[Tensor]) -> list[tuple[Tensor, Tensor]]:
        """Pairs of what the block gives for these rows and its target, float32."""
        pairs = zip(found, self.targets, strict=True)
        return [(one.float(), target.float()) for one, target in pairs if target is not None]


@dataclass
class Site:
    """A block and rows of the calibration set. `original`: the full-precision block; `targets`: its outputs, [rows, ...] each,
    None for one that has no entry for each row; `exact`: what it is called with in the full-precision network, until it was
    rounded by that. `reader`: reads rows ahead that do not lie on the device. `batch`: rows that run at a time where nothing is
    learned; None: all."""

    block: nn.Module
    original: nn.Module
    rows: Rows
    targets: Sequence[Tensor | Stored | None]
    exact: Rows | None = None
    reader: Reader | None = None
    batch: int | None = None

    @property
    def device(self) -> torch.device:
        """The device on which the rows are needed."""
        return next(target.device for target in self.targets if target is not None)

    def take(self, rows: Tensor | slice) -> Sample:
        """Take some rows: int64 indices in the host's memory, or a slice."""
        targets = [None if target is None else target[rows] for target in self.targets]
        return Sample(self.rows.take(rows), self.rows.state(rows), targets)

    def ahead(self, read: Callable[[Key], T], keys: Iterable[Key]) -> Generator[T]:
        """`read(key)` for every key, a read of rows; the next one meanwhile, where some do not lie on the device."""
        stored = [*self.rows.stored, *self.targets, *(self.exact.stored if self.exact else [])]
        far = any(isinstance(one, Stored) and one.elsewhere for one in stored)
        return each(self.reader if far else None, read, keys)

    def parts(self) -> list[slice]:
        """All rows, `batch` at a time."""
        rows = len(self.rows)
        batch = self.batch or rows
        return [slice(start, min(start + batch, rows)) for start in range(0, rows, batch)]


class Samples:
    """The samples that each iteration learns from, for Lightning. `indices`: the rows of each, in the host's memory."""

    def __init__(self, site: Site, indices: Sequence[Tensor]) -> None:
        self._site: tuple[Site, ...] = (site,)
        self._indices = indices
        self._read: Generator[Sample] | None = None

    def __len__(self) -> int:
        return len(self._indices)

    def __iter__(self) -> Iterator[Sample]:
        (site,) = self._site
        self._read = site.ahead(site.take, self._indices)
        return self._read

    def release(self) -> None:
        """Let go of the rows: the trainer keeps this, and does not read to the end, until a garbage collection."""
        if self._read is not None:
            self._read.close()
        self._site, self._read = (), None


class Reconstruction(pl.LightningModule):
    """Learns on samples of a site. `start`: the block's relative squared error before."""

    title: ClassVar[str]
    """The name of what is learned, for people."""
    part: ClassVar[str]
    """The name of the files of finished blocks."""

    def __init__(self, site: Site, settings: WeightLearning | ScaleLearning, start: float) -> None:
        super().__init__()
        # no submodule: its biases are not to be learned, and Lightning would carry it off to the CPU at the end
        self._site: tuple[Site, ...] = (site,)
        self.settings, self.start = settings, start
        self.run: Run = partial(run, site.block)
        """The way in which the block is run."""
        self.error = torch.tensor(math.nan)
        """The relative squared error of the last batch."""

    def release(self) -> None:
        """Let go of the rows: the trainer that ran this module keeps it until a garbage collection."""
        self._site = ()

    @staticmethod
    @abstractmethod
    def state(block: nn.Module) -> State:
        """A copy of the block's state; empty where there is nothing to learn."""

    @staticmethod
    @abstractmethod
    def restore(block: nn.Module, state: State) -> None:
        """Give the block this state."""

    @abstractmethod
    def learned(self) -> State:
        """The state that was learned."""

    def transfer_batch_to_device(self, batch: Sample, device: torch.device, dataloader_idx: int) -> Sample:
        """Return the batch, which is on the device already."""
        return batch

    def differences(self, sample: Sample, overrides: State) -> tuple[list[Tensor], list[Tensor]]:
        """The block's outputs less their targets, and the targets."""
        (site,) = self._site
        with knowing(site.block, sample.state):
            found = sample.measured(self.run(sample.call, overrides))
        differences, targets = [one - target for one, target in found], [target for _, target in found]
        self.error = relative(total(one.detach().square() for one in differences), total(one.square() for one in targets))
        return differences, targets


class WeightReconstruction(Reconstruction):
    """AdaRound of all weights of a block, from the levels that it has, or from its original weights."""

    title, part = "weight rounding", "weights"
    settings: WeightLearning

    def __init__(self, site: Site, settings: WeightLearning, start: float) -> None:
        super().__init__(site, settings, start)
        layers = dict(_rounded_layers(site.block))
        originals = dict(site.original.named_parameters(remove_duplicate=False))
        self._names = list(layers)
        exact = {name: layer.own_weight(originals[_parameter(name, "weight")]) for name, layer in layers.items()}
        self._roundings = [
            SoftRounding(exact[name], layer.weight_qparams, layer.weight_scheme, self._levels(layer))
            for name, layer in layers.items()
        ]
        self._registered = nn.ModuleList(self._roundings)

    def _levels(self, layer: Any) -> Tensor | None:
        levels: Tensor = layer.weight_int
        return None if self.settings.start == "nearest" else levels

    @staticmethod
    def state(block: nn.Module) -> State:
        return {name: layer.weight_int.clone() for name, layer in _rounded_layers(block)}

    @staticmethod
    def restore(block: nn.Module, state: State) -> None:
        for name, layer in _rounded_layers(block):
            layer.set_weight(state[name], layer.weight_qparams)

    @torch.no_grad()
    def learned(self) -> State:
        return {name: rounding.integers() for name, rounding in zip(self._names, self._roundings, strict=True)}

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.Adam(self.parameters(), lr=self.settings.rate, fused=True)

    def training_step(self, sample: Sample, step: int) -> Tensor:
        """The loss of one batch; where it is not balanced, of each output summed over the channels and the mean over the
        rest."""
        choices = [rounding.h() for rounding in self._roundings]
        parts = zip(self._names, self._roundings, choices, strict=True)
        overrides = {_parameter(name, "weight"): rounding.weight(h) for name, rounding, h in parts}
        differences, targets = self.differences(sample, overrides)
        if self.settings.balanced:
            loss = relative(total(one.square() for one in differences), total(one.square() for one in targets)) / self.start
        else:
            loss = torch.stack([one.square().sum(self._channels(one)).mean() for one in differences]).sum()
        return loss + self._regulariser(choices, step)

    def _channels(self, output: Tensor) -> int:
        """The dimension of an output of the block along which its channels lie."""
        (site,) = self._site
        if isinstance(site.block, nn.Linear):
            return -1
        return 1 if output.ndim == 4 or isinstance(site.block, nn.Conv1d) else -1

    def _regulariser(self, choices: list[Tensor], step: int) -> Tensor | float:
        settings = self.settings
        progress = (step / settings.iterations - settings.warmup) / (1 - settings.warmup)
        if progress < 0:
            return 0.0
        first, last = settings.beta
        beta = first + (last - first) * progress
        total = torch.stack([undecided(h, beta).sum() for h in choices]).sum()
        return settings.regulariser * total / (sum(h.numel() for h in choices) if settings.balanced else 1)


class ScaleReconstruction(Reconstruction):
    """Scales of all activation quantizers of a block that keep what was observed, in all groups of timesteps, learned as log s:
    they stay positive."""

    title, part = "activation scales", "scales"
    settings: ScaleLearning

    def __init__(self, site: Site, settings: ScaleLearning, start: float) -> None:
        super().__init__(site, settings, start)
        quantizers = dict(_learned_quantizers(site.block))
        self._names = list(quantizers)
        self.logs = nn.ParameterList(quantizer.scale.log() for quantizer in quantizers.values())

    @staticmethod
    def state(block: nn.Module) -> State:
        return {name: quantizer.scale.clone() for name, quantizer in _learned_quantizers(block)}

    @staticmethod
    def restore(block: nn.Module, state: State) -> None:
        for name, quantizer in _learned_quantizers(block):
            quantizer.scale.copy_(state[name])

    @torch.no_grad()
    def learned(self) -> State:
        return {name: log.exp() for name, log in zip(self._names, self.logs, strict=True)}

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.parameters(), lr=self.settings.rate, fused=True)
        schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, self.settings.iterations)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": schedule, "interval": "step"}}

    def training_step(self, sample: Sample, step: int) -> Tensor:
        """The loss of one batch."""
        overrides = {_parameter(name, "scale"): log.exp() for name, log in zip(self._names, self.logs, strict=True)}
        differences, targets = self.differences(sample, overrides)
        power = self.settings.power
        return relative(total(one.abs().pow(power) for one in differences), total(one.abs().pow(power) for one in targets))


def total(parts: Iterable[Tensor]) -> Tensor:
    """The sum of all elements of all of them."""
    return torch.stack([part.sum() for part in parts]).sum()


def relative(error: Tensor, target: Tensor) -> Tensor:
    """A sum over errors by the same sum over targets; the error itself where all targets are 0."""
    return error / torch.where(target > 0, target, 1)


def _parameter(module: str, name: str) -> str:
    return f"{module}.{name}" if module else name  # a block may be the layer itself


def _rounded_layers(block: nn.Module) -> Iterator[tuple[str, Any]]:
    layers = ((name, module) for name, module in block.named_modules() if isinstance(module, QuantizedLayer))
    return ((name, layer) for name, layer in layers if layer.weight_scheme is not None)


def _learned_quantizers(block: nn.Module) -> Iterator[tuple[str, ActivationQuantizer]]:
    quantizers = ((name, module) for name, module in block.named_modules() if isinstance(module, ActivationQuantizer))
    return ((name, quantizer) for name, quantizer in quantizers if quantizer.observed)
