"""Measures the engine against the obvious way to do the same, and prints ratios.

    python -m benchmarks                                   all parts, as in docs/benchmarks.md
    python -m benchmarks data_path sampling                some
    python -m benchmarks --rows 256 --repetitions 1        a first look
    python -m benchmarks sampling --set quant=w8a8         with options of `python -m qdexp`

    data_path      streams pushed forward block by block, against passes that start again at every block
    range_search   over all weights of the model, batched, against a loop over channels and candidates
    sampling       with the quantized network, against full precision
    quantization   the whole of it, in full-precision passes over its calibration set
    growth         of data path and quantization: a quarter of the rows to four times as many, three widths of the model
    memory         what is planned for a pass of --rows rows, beside what it takes; with any model.weights=random
    onnx           one pass in ONNX Runtime of what `python -m qdexp.export` writes, against torch
    overhead       what qdexp itself costs a cell in its jobs, beside the work of the stages

    python -m benchmarks gpu                               what only a GPU can tell: a command of its own, see its --help
    python -m benchmarks execution                         what each backend takes for a step on a CPU: likewise

Ratios are medians over the repetitions, with the least and the largest; what is compared runs in turn. Set OMP_NUM_THREADS=1
where other processes run: then the ratios of CPU times hardly feel them.
"""

import argparse
import contextlib
import sys
import tempfile
from collections.abc import Iterator, Sequence
from pathlib import Path

from hydra.errors import HydraException
from omegaconf.errors import OmegaConfBaseException

from benchmarks import data_path, growth, markdown, memory, overhead, quantizing, range_search, sampling
from benchmarks.execution.command import main as execution
from benchmarks.gpu.command import main as gpu
from benchmarks.subject import Subject, config_of
from qdexp import device as devices
from qdexp import machine, provenance
from qdexp.config import UNTOUCHED, Config
from qdexp.errors import UserError, one_line
from qdexp.export.__main__ import check_packages

ROWS = {
    "data_path": 1024,
    "range_search": 64,
    "sampling": 64,
    "quantization": 5120,
    "growth": 1024,
    "memory": 8,
    "onnx": 64,
    "overhead": 64,
}
"""Calibration rows of each part; of memory, those of a pass."""

LEARNING = {"data_path": 1, "quantization": 1, "growth": growth.SHARE}
"""The parts that learn from their rows, and by what these are divided at the least."""


def table(part: str, config: Config, rows: int, repetitions: int, folder: Path) -> tuple[list[str], Iterator[list[str]]]:
    """The header of a part's table, and its rows, which are measured as they are asked for."""
    subject = Subject(config, rows, folder)
    match part:
        case "data_path":
            return data_path.HEADER, iter(data_path.run(subject, repetitions))
        case "range_search":
            return range_search.HEADER, iter(range_search.run(subject, repetitions))
        case "sampling":
            return sampling.HEADER, iter(sampling.run(subject, repetitions))
        case "quantization":
            return quantizing.HEADER, iter(quantizing.run(subject))
        case "memory":
            return memory.HEADER, memory.run(subject)
        case "onnx":
            from benchmarks import onnx  # its packages are an extra

            return onnx.HEADER, iter(onnx.run(subject, repetitions))
        case "overhead":
            return overhead.HEADER, iter(overhead.run(subject, repetitions))
        case _:
            return growth.HEADER, map(growth.row, growth.subjects(config, rows, folder))


def check(config: Config, parts: dict[str, int]) -> None:
    """Raises UserError where a part, with its rows, would have nothing to measure, or lacks a package."""
    if "onnx" in parts:
        check_packages()
    if config.full_precision or config.quant.weight_bits == UNTOUCHED:
        raise UserError(f"{config.method} {config.quant.label}: no weights are quantized; choose quant.weight_bits of 2 to 8")
    heldout = config.recon.heldout
    for part in LEARNING.keys() & parts.keys():
        least = parts[part] // LEARNING[part]
        if least <= heldout:
            raise UserError(f"--rows {parts[part]}: {part} learns from {least} rows, of which recon.heldout={heldout} only "
                            f"judge; raise --rows")  # fmt: skip


def head(config: Config) -> str:
    """What was measured where."""
    device = devices.resolve(config.device)
    where = provenance.collect(device)
    what = f"{config.model.name}, {config.method} {config.quant.label}, recon={config.recon.name}"
    return f"{what}; {machine.line(device)}, torch {where['versions']['torch']}, {where['platform']}"


def show(part: str, config: Config, rows: int, repetitions: int) -> None:
    """Print a part's table, row by row."""
    with tempfile.TemporaryDirectory() as folder:
        with contextlib.redirect_stdout(sys.stderr):  # what stages say of themselves
            header, body = table(part, config, rows, repetitions, Path(folder))
        print(f"\n{part}, {rows:,} {'rows of a pass' if part == 'memory' else 'calibration rows'}\n")
        print(markdown.head(header), flush=True)
        while True:
            with contextlib.redirect_stdout(sys.stderr):
                row = next(body, None)
            if row is None:
                return
            print(markdown.line(row), flush=True)


def main(arguments: Sequence[str] | None = None) -> None:
    """See the module's docstring."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] in (["gpu"], ["execution"]):
        return {"gpu": gpu, "execution": execution}[given[0]](given[1:])
    parser = argparse.ArgumentParser(
        "python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(ROWS)}; all of them where none is named")
    parser.add_argument("--rows", type=int, help=f"calibration rows; by default {ROWS}")
    parser.add_argument(
        "--repetitions", type=int, default=3, help="of data_path, range_search, sampling and overhead; 3 by default"
    )
    parser.add_argument(
        "--set", nargs="+", default=[], metavar="KEY=VALUE", help="options of `python -m qdexp`", dest="overrides"
    )
    options = parser.parse_args(given)
    if unknown := set(options.parts) - ROWS.keys():
        parser.error(f"no part is called {', '.join(sorted(unknown))}; choose from {', '.join(ROWS)}")
    if options.repetitions < 1 or (options.rows is not None and options.rows < 1):
        parser.error("--rows and --repetitions must be at least 1")
    with one_line(HydraException, OmegaConfBaseException):
        devices.make_repeatable()
        config = config_of(options.overrides)
        parts = {part: options.rows or ROWS[part] for part in options.parts or ROWS}
        check(config, parts)
        print(head(config), flush=True)
        for part, rows in parts.items():
            show(part, config, rows, options.repetitions)


if __name__ == "__main__":
    main()
