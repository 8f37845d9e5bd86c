"""What reconstruction did, a row a record: errors of the blocks after learning, over the errors before, on held-out rows.

    python analysis/reconstruction.py outputs/records/*.json

The ratio is the geometric mean over the blocks, the worst block in brackets; a block that did not gain counts as 1. `noise
error` is the mean over the sampler's steps on held-out trajectories; `seconds` are those of learning rounding and scales.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from qdexp.errors import one_line
from qdexp.report.records import Record, read_records
from qdexp.report.table import row_names

HEADER = ["cell", "iterations", "rate", "weights: error / before", "no gain", "scales: error / before", "no gain",
          "noise error", "seconds"]  # fmt: skip


def row(name: str, record: Record) -> list[str]:
    """The cells of a record's row."""
    weights, costs = record["config"]["recon"]["weights"], record["costs"]
    seconds = sum(costs[stage]["seconds"] for stage in ("rounding", "quantization") if stage in costs)
    learned = [text for what in ("weights", "scales") for text in _gain(record["reconstruction"].get(what))]
    error = f"{record['metrics']['noise_error']:.3g}"
    iterated = record["config"]["quantizer"]["rounding"] == "adaround"
    how = [f"{weights['iterations']:,}", f"{weights['rate']:g}"] if iterated else ["-", "-"]
    return [name, *how, *learned, error, f"{seconds:.0f}"]


def _gain(blocks: dict[str, list[Any]] | None) -> list[str]:
    if blocks is None:
        return ["-", "-"]
    pairs = zip(blocks["before"], blocks["learned"], blocks["kept"], strict=True)
    ratios = [learned / before if kept else 1.0 for before, learned, kept in pairs]
    mean = statistics.geometric_mean(ratios) if min(ratios) > 0 else 0.0
    return [f"{mean:.3f} ({max(ratios):.3f})", f"{blocks['kept'].count(False)} of {len(ratios)}"]


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    records = [record for record in read_records(parser.parse_args().records) if record.get("reconstruction")]
    rows = [row(name, record) for name, record in zip(row_names(records), records, strict=True)]
    rows.sort(key=lambda texts: float(texts[-2]))
    print("\n".join(f"| {' | '.join(texts)} |" for texts in [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *rows]))


if __name__ == "__main__":
    with one_line():
        main()
