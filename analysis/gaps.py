"""How much of what quantization costs each method wins back, over the seeds of a sweep.

    python -m qdexp -m seed=0,1,2
    python -m qdexp -m seed=0,1,2 method=timestep_aware quant=w32a8
    python analysis/gaps.py outputs/records/*.json

    rounding  (noise error of nearest rounding - of the method) / (of nearest rounding - of quantized activations alone)
    FID       (FID of ptq - of the method) / (of ptq - of fp)

Nearest rounding is the rung timestep_aware. Means over the seeds with 95 % t-intervals; seeds move calibration and learning,
not the noise of the images. A share is told only where the interval of the gap itself is above zero.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from qdexp.errors import UserError, one_line
from qdexp.report.records import Record, read_records
from qdexp.report.statistics.estimate import over_seeds
from qdexp.report.table import common_protocol

BITS, ACTIVATIONS_ALONE = "w4a8", "w32a8"
METHODS = ("timestep_aware", "reconstruction", "qdiffusion")
Cells = dict[tuple[str, str, int], dict[str, float]]
"""(method, bit-width, seed) -> metrics."""


def cells_of(records: Sequence[Record]) -> Cells:
    """The complete cells of the ladder. Raises UserError where two claim one place."""
    common_protocol(list(records))
    cells: Cells = {}
    for record in records:
        axes = record["axes"]
        place = axes["method"], axes["quant"], axes["seed"]
        if place in cells:
            raise UserError(f"{record['cell']} is not the only record of {place}: give the records of one sweep")
        cells[place] = record["metrics"]
    return cells


def interval(values: Sequence[float], digits: int) -> str:
    """Mean and 95 % t-interval."""
    mean = over_seeds(values)
    return f"{mean.value:.{digits}f} [{mean.low:.{digits}f}, {mean.high:.{digits}f}]"


def row(method: str, cells: Cells, seeds: Sequence[int]) -> list[str]:
    """A method's noise error and FID, and the shares of the two gaps that it closes."""

    def over_seeds(name: str, metric: str, bits: str = BITS) -> list[float]:
        return [cells[name, bits, seed][metric] for seed in seeds]

    nearest, alone = over_seeds("timestep_aware", "noise_error"), over_seeds("timestep_aware", "noise_error", ACTIVATIONS_ALONE)
    error, fid, ptq = over_seeds(method, "noise_error"), over_seeds(method, "fid"), over_seeds("ptq", "fid")
    full = [next(metrics["fid"] for (name, *_), metrics in cells.items() if name == "fp")] * len(seeds)
    return [method, interval([value * 1e6 for value in error], 0), share(nearest, error, alone), interval(fid, 2),
            share(ptq, fid, full)]  # fmt: skip


def share(high: Sequence[float], value: Sequence[float], low: Sequence[float]) -> str:
    """(high - value) / (high - low) in percent."""
    gaps = [upper - lower for upper, lower in zip(high, low, strict=True)]
    if over_seeds(gaps).low <= 0:
        return "no claim"
    return interval([100 * (upper - middle) / gap for upper, middle, gap in zip(high, value, gaps, strict=True)], 1)


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    cells = cells_of([record for record in read_records(parser.parse_args().records) if record["status"] == "complete"])
    seeds = sorted({seed for _, bits, seed in cells if bits == ACTIVATIONS_ALONE})
    wanted = {(method, BITS, seed) for method in ("ptq", *METHODS) for seed in seeds}
    if len(seeds) < 2 or not wanted <= cells.keys():
        parser.error("give the records of both sweeps, for at least two seeds")
    header = ["method", "noise error x10^6", "of the rounding error closed, %", "FID", "of the FID gap of ptq closed, %"]
    rows = [row(method, cells, seeds) for method in METHODS]
    print("\n".join(f"| {' | '.join(texts)} |" for texts in [header, ["---", *["---:"] * 4], *rows]))


if __name__ == "__main__":
    with one_line():
        main()
