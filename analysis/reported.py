"""The paper's reported numbers beside ours.

    python -m qdexp -m experiment=paper_cifar10 protocol.reference=cifar10.safetensors
    python analysis/reported.py outputs/records/*.json

Reported numbers are read from `reported.json`; nothing of ours is in it. Ours are a dash where no complete record is given
that was measured with the paper's number of images on weights that are not random.
"""

import argparse
import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from qdexp.errors import one_line
from qdexp.report.records import Record, read_records

REPORTED = Path(__file__).with_suffix(".json")
IMAGES = 50_000


def ours(records: Sequence[Record], model: str, method: str, quant: str, metric: str) -> str:
    """Our number, the last measured, or a dash."""
    for record in reversed(records):
        axes = record["axes"]
        named = (axes["model"], axes["method"], axes["quant"]) == (model, method, quant)
        if named and record["status"] == "complete" and record["protocol"]["n"] == IMAGES and axes.get("weights") != "random":
            return f"{record['metrics'][metric]:.2f}"
    return "-"


def rows(table: dict[str, Any], records: Sequence[Record]) -> Iterator[str]:
    """A table's lines in Markdown."""
    columns = [f"{metric} {whose}" for metric in table["metrics"] for whose in ("reported", "ours")]
    yield f"| {table['model']} | bits | {' | '.join(columns)} |"
    yield f"| --- | --- | {' | '.join('---:' for _ in columns)} |"
    cells = [("fp", "full", table["fp"])]
    for method in ("timestep_aware", "qdiffusion"):
        cells += [(method, quant, values) for quant, values in table[method].items()]
    for method, quant, values in cells:
        found = [ours(records, table["model"], method, quant, metric) for metric in table["metrics"]]
        numbers = [text for value, own in zip(values, found, strict=True) for text in (f"{value:.2f}", own)]
        yield f"| {method} | {quant} | {' | '.join(numbers)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="*")
    records, reported = read_records(parser.parse_args().records), json.loads(REPORTED.read_text())
    for table in reported["tables"]:
        print("\n".join(rows(table, records)), end="\n\n")
    print(f"Reported: {reported['source']}. Of ours:")
    print("\n".join(f"- {deviation}" for deviation in reported["deviations"]))


if __name__ == "__main__":
    with one_line():
        main()
