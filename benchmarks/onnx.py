"""ONNX Runtime on what ``python -m qdexp.export`` writes, against float32 and simulated arithmetic in torch: one pass of the
network over the same rows, with as many threads in either."""

from collections import Counter
from pathlib import Path

import onnx
import torch
from torch import nn

from benchmarks.subject import Subject
from benchmarks.timing import interleaved, ratios, seconds
from qdexp.export import graph
from qdexp.export.runtime import Runtime
from qdexp.quant.blocks import Batch, arguments, call

HEADER = ["onnx", "one pass, s (CPU)", "ratio", "ratio of CPU times", "file, MB", "products of integers"]
INTEGER = {"QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger", "MatMulIntegerToFloat"}
FLOAT = {"Conv", "FusedConv", "NhwcFusedConv", "MatMul", "FusedMatMul", "Gemm", "MatMulNBits"}


def exported(network: nn.Module, batch: Batch, path: Path, narrowest: int = 4) -> Runtime:
    """A network, quantized or not, in ONNX Runtime, which may take as many threads as torch.

    Args:
        network: On the CPU, in eval mode; it is not changed.
        batch: Two rows or more, as the network is called.
        path: Of the file, which stays.
        narrowest: Bits of the integers of weights, at least: 4 or 8.
    """
    model = graph.exported(network, with_float_timesteps(batch), narrowest)
    return graph.write(model, path, {}, lambda part: Runtime(part, torch.get_num_threads(), path.with_suffix(".optimized")))


def with_float_timesteps(batch: Batch) -> Batch:
    """The batch as exported networks take it."""
    (x_t, t), named = arguments(batch)
    return x_t, t.float(), named


def run(subject: Subject, repetitions: int) -> list[list[str]]:
    """The rows of the table. Ranges are observed on the subject's rows."""
    full = subject.full()
    network, _ = subject.rounded(full)
    subject.observe(network)
    batch = with_float_timesteps(subject.batches[0])
    files = {
        "float32, ONNX Runtime": (full, subject.folder / "full.onnx", 4),
        "quantized, ONNX Runtime": (network, subject.folder / "narrow.onnx", 4),
        "quantized, all weights in 8 bits, ONNX Runtime": (network, subject.folder / "wide.onnx", 8),
    }
    runtimes = {name: exported(one, batch, path, narrowest) for name, (one, path, narrowest) in files.items()}

    @torch.inference_mode()
    def torch_pass(net: nn.Module) -> None:
        call(net, batch)

    works = {"float32": lambda: torch_pass(full), "simulated": lambda: torch_pass(network)}
    works |= {name: (lambda one=runtime: one(batch)) for name, runtime in runtimes.items()}  # type: ignore[misc]
    for work in works.values():  # warm
        work()
    costs = dict(zip(works, interleaved(repetitions, subject.device, *works.values()), strict=True))
    rows = []
    for name, cost in costs.items():
        path = files[name][1] if name in files else None
        told = (
            ["-", "-"]
            if path is None
            else [f"{path.stat().st_size / 1e6:.2f}", integer_products(path.with_suffix(".optimized"))]
        )
        rows.append([f"{name}, {len(batch[0])} rows", seconds(cost), *ratios(cost, costs["float32"]), *told])
    return rows


def integer_products(path: Path) -> str:
    """Of the convolutions and matrix products in a graph that ONNX Runtime has optimized, those that multiply integers."""
    kinds = Counter(node.op_type for node in onnx.load(path).graph.node)
    integers, floats = (sum(kinds[kind] for kind in some) for some in (INTEGER, FLOAT))
    return f"{integers} of {integers + floats}"
