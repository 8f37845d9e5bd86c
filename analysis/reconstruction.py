"""What reconstruction did, a row a record: errors of the blocks after learning, over the errors before, on held-out rows.

    python analysis/reconstruction.py outputs/records/*.json

Errors and ratios are geometric means over the blocks, the worst ratio in brackets; a block that did not gain keeps its error.
Of weights the error itself stands there too, since "before" depends on the blocks before. `noise error` is the mean over the
sampler's steps on held-out trajectories; `seconds` are those of learning rounding and scales.
"""

import argparse
import statistics
from pathlib import Path
from typing import Any

from qdexp.errors import one_line
from qdexp.record import Record, read_records
from qdexp.report.rows import names

HEADER = ["cell", "start", "iterations", "rate", "weights: error", "error / before", "no gain", "scales: error / before",
          "no gain", "noise error", "seconds"]  # fmt: skip


def row(name: str, record: Record) -> list[str]:
    """The cells of a record's row."""
    weights, costs = record["config"]["quantizer"]["steps"]["weights"], record["costs"]
    seconds = sum(costs[stage]["seconds"] for stage in ("weights", "scales") if stage in costs)
    rounded, scaled = (_gain(record["reconstruction"].get(what)) for what in ("weights", "scales"))
    error = f"{record['metrics']['noise_error']:.3g}"
    method = weights["_target_"].rpartition(".")[2]
    how = [weights["start"], f"{weights['iterations']:,}", f"{weights['rate']:g}"] if "start" in weights else [method, "-", "-"]
    return [name, *how, *rounded, *scaled[1:], error, f"{seconds:.0f}"]


def _gain(blocks: dict[str, list[Any]] | None) -> list[str]:
    """Error, error / before, and where there was no gain."""
    if blocks is None:
        return ["-", "-", "-"]
    pairs = list(zip(blocks["before"], blocks["learned"], blocks["kept"], strict=True))
    errors = [learned if kept else before for before, learned, kept in pairs]
    ratios = [learned / before if kept else 1.0 for before, learned, kept in pairs]
    mean, gain = (statistics.geometric_mean(values) if min(values) > 0 else 0.0 for values in (errors, ratios))
    return [f"{mean:.3g}", f"{gain:.3f} ({max(ratios):.3f})", f"{blocks['kept'].count(False)} of {len(ratios)}"]


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    records = [record for record in read_records(parser.parse_args().records) if record.get("reconstruction")]
    rows = [row(name, record) for name, record in zip(names(records), records, strict=True)]
    rows.sort(key=lambda texts: float(texts[-2]))
    print("\n".join(f"| {' | '.join(texts)} |" for texts in [HEADER, ["---", *["---:"] * (len(HEADER) - 1)], *rows]))


if __name__ == "__main__":
    with one_line():
        main()
