"""How fast quantization is at the full width of ``ldm_bedroom`` with random weights: passes, the search of ranges, and rounding
and learning of a few blocks, each in a walk of all calibration rows up to the last of them."""

from collections.abc import Callable, Iterator
from functools import partial

from torch import nn

from benchmarks.gpu.setup import Row, Setup
from benchmarks.subject import NoiseRows, one_pass
from benchmarks.timing import measure
from qdexp.config.learning import BlockWise, ScaleLearning, WeightLearning
from qdexp.recon.walk import Walk

MODEL = "ldm_bedroom"
ROWS, BATCH, ITERATIONS, BLOCKS = 64, 16, 20, 6
"""Calibration rows; of them at a time, of an iteration and held out each; iterations of a block; about so many blocks, evenly
spread."""


def run(setup: Setup) -> Iterator[Row]:
    """A row for each kind of work."""
    rows, batch, iterations = (8, 4, 2) if setup.small else (ROWS, BATCH, ITERATIONS)
    subject = NoiseRows(setup.wide(MODEL, "method=qdiffusion", f"sampling.batch={batch}"), rows, setup.folder)
    full, batches = subject.full(), subject.batches

    def timed(what: str, work: Callable[[], object], amount: float, unit: str) -> Row:
        cost = measure(work, setup.device)
        return {
            MODEL: what,
            "s": f"{cost.wall:.3g}",
            "amount": f"{amount:,.4g} {unit}",
            "a second": f"{amount / cost.wall:,.4g}",
            "peak memory, MiB": f"{cost.peak_mb:,.0f}",
        }

    def passed(what: str, network: nn.Module) -> Row:
        one_pass(network, batches[:1])  # what is chosen and kept at the first time is not counted
        return timed(f"passes, {what}", partial(one_pass, network, batches), rows, "rows")

    yield passed("full precision", full)
    found = []
    weights = sum(layer.weight.numel() for layer in full.modules() if isinstance(layer, nn.Conv2d | nn.Linear)) / 1e6
    yield timed(
        "weights' ranges searched, rounded to nearest", lambda: found.append(subject.rounded(full)), weights, "M weights"
    )
    network, blocks = found.pop()
    some = {name: blocks[name] for name in list(blocks)[:: max(1, len(blocks) // BLOCKS)]}
    weights = sum(value.numel() for name in some for value in full.get_submodule(name).parameters()) / 1e6
    steps = iterations * len(some)

    def walk(options: BlockWise, part: str) -> Walk:
        folder = setup.folder / f"walk-{part}"
        folder.mkdir()
        return Walk(network, full, some, options, seed=0, folder=folder)

    rounding = walk(BlockWise(heldout=batch), "gptq")
    yield timed(f"GPTQ of {len(some)} of {len(blocks)} blocks", lambda: rounding.round_weights(batches), weights, "M weights")
    learned = WeightLearning(batch=batch, heldout=batch, start="nearest", iterations=iterations, rate=0.1)
    learning = walk(learned, "weights")
    yield timed(f"weights learned, {len(some)} blocks", lambda: learning.learn_weights(batches), steps, "iterations")
    yield timed("activations' ranges searched", lambda: subject.observe(network), rows, "rows")
    yield passed("quantized", network)
    scales = walk(ScaleLearning(batch=batch, heldout=batch, iterations=iterations, rate=0.01), "scales")
    yield timed(f"scales learned, {len(some)} blocks", lambda: scales.learn_scales(batches), steps, "iterations")


def _millions(module: nn.Module) -> float:
    """Its weights, for what is more than one number an output."""
    return sum(value.numel() for value in module.parameters() if value.ndim > 1) / 1e6
