"""One step of a sampler, a call of the network, in each arithmetic; where the time goes, and what of it integers could take."""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.execution import peak
from benchmarks.execution.networks import Pair
from benchmarks.gpu.setup import Row, Setup
from benchmarks.timing import Cost, Ratio, interleaved
from qdexp.backends import Int8
from qdexp.backends.base import Lowered
from qdexp.quant.blocks import Batch, call, first_row
from qdexp.quant.macs import count, macs_by_module
from qdexp.quant.network import quantized_layers

ROWS = {"ddpm_fashion": 64, "dit_fashion": 64, "ldm_bedroom": 2}
"""Of a batch: what fills a CPU, and is done in seconds."""
WIDE = {"ldm_bedroom"}
"""Those of which no weights are at hand: random ones."""
METHOD = "method=ptq"
BITS = (4, 8)
REPETITIONS = 5
OPERATORS = 8
"""That are told of, those that take most."""
EAGER, COMPILED = "float32", "float32, compiled"
SIMULATED, SIMULATED_COMPILED, INTEGERS = "simulated", "simulated, compiled", "int8"

KERNELS, FLOAT = "int8 kernels", "float32: integers of attention, and what is not quantized"

Work = Callable[[], object]


def run(setup: Setup, model: str, threads: int, compiled: bool) -> Iterator[Row]:
    """The rows of three tables."""
    torch.set_num_threads(threads)
    rows = 2 if setup.small else ROWS[model]
    config = setup.wide(model, METHOD) if model in WIDE else setup.cell(model, METHOD)
    pair = Pair.of(config.model, rows, *BITS)
    lowered = Int8().lower(deepcopy(pair.quantized))
    works = {EAGER: _step(pair.full, pair.batch)}
    if compiled:
        works[COMPILED] = _step(torch.compile(pair.full, dynamic=False), pair.batch)
    works[SIMULATED] = _step(pair.quantized, pair.batch)
    if compiled:
        works[SIMULATED_COMPILED] = _step(torch.compile(pair.quantized, dynamic=False), pair.batch)
    works[INTEGERS] = _step(lowered.network, pair.batch)
    named = {"model": model, "rows": rows, "threads": threads}
    yield from _times(named, works, 1 if setup.small else REPETITIONS)
    yield from _shares(named, pair, lowered)
    yield from _operators(named, {name: works[name] for name in (EAGER, SIMULATED, INTEGERS)})


def _step(network: Any, batch: Batch) -> Work:
    @torch.inference_mode()
    def once() -> object:
        return call(network, batch)

    return once


def _times(named: Row, works: Mapping[str, Work], repetitions: int) -> Iterator[Row]:
    for work in works.values():  # what is compiled, chosen and laid out at the first time is not counted
        work()
        work()
    costs = dict(zip(works, interleaved(repetitions, torch.device("cpu"), *works.values()), strict=True))
    for name, own in costs.items():
        yield {
            **named,
            "arithmetic": name,
            "ms a step (CPU)": f"{_median(own, 'wall'):.4g} ({_median(own, 'cpu'):.4g})",
            **{f"{unit} / it": _speedup(costs[unit], own, "wall") for unit in (EAGER, COMPILED) if unit in costs},
            **{f"{unit} / it, CPU": _speedup(costs[unit], own, "cpu") for unit in (EAGER, COMPILED) if unit in costs},
        }


def _median(costs: Sequence[Cost], kind: str) -> float:
    return 1000 * Ratio.of([getattr(cost, kind) for cost in costs]).median


def _speedup(units: Sequence[Cost], costs: Sequence[Cost], kind: str) -> str:
    return str(Ratio.of([getattr(unit, kind) / getattr(cost, kind) for unit, cost in zip(units, costs, strict=True)]))


def _shares(named: Row, pair: Pair, lowered: Lowered) -> Iterator[Row]:
    """What of the MACs runs where, and how long it would take at the speed of large matrix products."""
    by_module = macs_by_module(count(pair.quantized, first_row(pair.batch)))
    taken = {name for name, _ in quantized_layers(lowered.network)} - lowered.left.keys()
    shares = Counter[str]()
    for name, macs in by_module.items():
        left = next((why for one, why in lowered.left.items() if f"{name}.".startswith(f"{one}.")), FLOAT)
        shares[KERNELS if name in taken else left] += macs
    rates, total, rows = peak.rates(), sum(by_module.values()), len(pair.batch[0])
    for where, macs in shares.items():
        yield {
            **named,
            "multiplied by": where,
            "share of MACs": f"{macs / total:.2%}",
            "GMACs": f"{rows * macs / 1e9:.4g}",
            "ms at the peak": f"{1000 * rows * macs / rates['int8' if where == KERNELS else 'float32']:.4g}",
        }


def _operators(named: Row, works: Mapping[str, Work]) -> Iterator[Row]:
    """Milliseconds by the operator of torch that takes them."""
    found = {name: _profiled(work) for name, work in works.items()}
    total = sum(found.values(), Counter[str]())
    most = [operator for operator, _ in total.most_common(OPERATORS)]
    rest = Counter({name: sum(times.values()) - sum(times[one] for one in most) for name, times in found.items()})
    for operator in most:
        yield {**named, "operator": operator, **{f"{name}, ms": f"{times[operator]:.4g}" for name, times in found.items()}}
    yield {**named, "operator": "all others", **{f"{name}, ms": f"{value:.4g}" for name, value in rest.items()}}


def _profiled(work: Work) -> Counter[str]:
    with profile(activities=[ProfilerActivity.CPU]) as seen:
        work()
    return Counter({event.key: event.self_cpu_time_total / 1000 for event in seen.key_averages()})
