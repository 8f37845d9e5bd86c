"""The paper's reported numbers beside ours.

    python -m qdexp -m experiment=paper_cifar10 protocol.reference=cifar10.safetensors
    python analysis/reported.py outputs/records/*.json

Reported numbers are read from `reported/MODEL.json`; nothing of ours is in it. Ours are a dash where no complete record is
given that was measured with the paper's number of images on weights that are not random. Which settings deviate, cell by cell:

    python -m qdexp.report SWEEP --reported analysis/reported/ddim_cifar10.json
"""

import argparse
from collections.abc import Iterator, Sequence
from pathlib import Path
from statistics import mean

from qdexp.errors import UserError, one_line
from qdexp.record import Record, read_records
from qdexp.report.conformance import Paper
from qdexp.report.identity import grouped
from qdexp.report.rows import row_names

REPORTED = Path(__file__).with_suffix("")
IMAGES = 50_000


def ours(records: Sequence[Record], model: str, method: str, quant: str, metric: str) -> str:
    """Our number, the mean over its seeds, or a dash. Raises UserError where several configurations are given."""
    wanted = {"model": model, "method": method, "quant": quant}
    groups = grouped([r for r in records if wanted.items() <= r["axes"].items() and r["axes"].get("weights") != "random"
                      and r["status"] == "complete" and r["protocol"]["n"] == IMAGES and metric in r["metrics"]])  # fmt: skip
    if len(groups) > 1:
        raise UserError(f"{model} {quant}: the records are of {'; '.join(row_names(groups))}: give those of one of them")
    values = [record["metrics"][metric] for group in groups for record in group]
    return f"{mean(values):.2f}" if values else "-"


def rows(paper: Paper, records: Sequence[Record]) -> Iterator[str]:
    """A table's lines in Markdown."""
    metrics, model = list(paper.cells[0]["numbers"]), paper.cells[0]["where"]["model"]
    columns = [f"{metric} {whose}" for metric in metrics for whose in ("reported", "ours")]
    yield f"| {model} | bits | {' | '.join(columns)} |"
    yield f"| --- | --- | {' | '.join('---:' for _ in columns)} |"
    for cell in paper.cells:
        method, quant = cell["where"]["method"], cell["where"]["quant"]
        pairs = [(f"{cell['numbers'][metric]:.2f}", ours(records, model, method, quant, metric)) for metric in metrics]
        yield f"| {method} | {quant} | {' | '.join(text for pair in pairs for text in pair)} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="*")
    records = read_records(parser.parse_args().records)
    papers = [Paper.read(path) for path in sorted(REPORTED.glob("*.json"))]
    for paper in papers:
        print("\n".join(rows(paper, records)), end="\n\n")
    print(f"Reported: {papers[0].source}. Of ours:")
    print("\n".join(f"- {deviation}" for deviation in dict.fromkeys(one for paper in papers for one in paper.deviations)))


if __name__ == "__main__":
    with one_line():
        main()
