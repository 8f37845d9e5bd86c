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
from statistics import mean
from typing import Any

from qdexp.errors import UserError, one_line
from qdexp.record import Record, read_records
from qdexp.report.identity import grouped
from qdexp.report.rows import row_names

REPORTED = Path(__file__).with_suffix(".json")
IMAGES = 50_000


def ours(records: Sequence[Record], model: str, method: str, quant: str, metric: str) -> str:
    """Our number, the mean over its seeds, or a dash. Raises UserError where several configurations are given."""
    wanted = {"model": model, "method": method, "quant": quant}
    groups = grouped([r for r in records if wanted.items() <= r["axes"].items() and r["axes"].get("weights") != "random"
                      and r["status"] == "complete" and r["protocol"]["n"] == IMAGES])  # fmt: skip
    if len(groups) > 1:
        raise UserError(f"{model} {quant}: the records are of {'; '.join(row_names(groups))}: give those of one of them")
    values = [record["metrics"][metric] for group in groups for record in group]
    return f"{mean(values):.2f}" if values else "-"


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
