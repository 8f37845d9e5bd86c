"""Where a quantized network errs: the worst layers and the worst timesteps of each record.

    python analysis/worst.py outputs/records/*.json --most 10

Layers: each alone quantized in the full-precision network, by what that does to the noise prediction (`sensitivity` of the
stage `layers`), with the share of it in the sum over all layers, and the error of the layer's own output. The products of
attention are no layers. Timesteps: the error of the noise prediction of the whole network there (teacher-forced), over the
median of all steps, and the error of x_t accumulated until there (free-running). All are relative squared errors x1000, and all
steps of the sampler are in them, one at t = 0 too.
"""

import argparse
import statistics
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from qdexp.errors import UserError, one_line
from qdexp.record import Record, read_records
from qdexp.report.evidence import Evidence
from qdexp.report.rows import bits, names

LAYERS = ["layer", "bits", "noise error", "share, %", "own error", "MACs, %"]
TIMESTEPS = ["timestep", "noise error", "over the median", "accumulated in x_t"]


def worst_layers(layers: list[dict[str, Any]], most: int) -> Iterator[list[str]]:
    """A row of each, the worst first."""
    total, macs = (sum(layer[key] for layer in layers) for key in ("sensitivity", "macs"))
    for layer in sorted(layers, key=lambda one: -one["sensitivity"])[:most]:
        own = f"W{layer['weight_bits']}A{layer['act_bits']}"
        shares = [
            f"{100 * layer[key] / whole:.1f}" if whole else "-" for key, whole in (("sensitivity", total), ("macs", macs))
        ]
        yield [layer["name"], own, f"{1e3 * layer['sensitivity']:.3g}", shares[0], f"{1e3 * layer['error']:.3g}", shares[1]]


def worst_timesteps(curves: dict[str, list[Any]], most: int) -> Iterator[list[str]]:
    """A row of each, the worst first."""
    every = zip(curves["timestep"], curves["teacher_forced"], curves["free_running"], strict=True)
    steps = [step for step in every if None not in step]  # which was not finite
    median = statistics.median(error for _, error, _ in steps) if steps else 0
    for timestep, error, accumulated in sorted(steps, key=lambda step: -step[1])[:most]:
        over = f"{error / median:.1f}" if median else "-"
        yield [f"{timestep:g}", f"{1e3 * error:.3g}", over, f"{1e3 * accumulated:.3g}"]


def tables(record: Record, evidence: Evidence, most: int) -> Iterator[str]:
    """The tables of one record in Markdown, or what it lacks."""
    layers = evidence.read_json(record, "layers")
    if layers:
        yield from _table(LAYERS, worst_layers(layers, most))
    else:
        yield "Its layers were not looked at, or their errors are not in the store: run it again with inspection.rows=16."
    yield ""
    yield from _table(TIMESTEPS, worst_timesteps(record["curves"], most))


def _table(header: list[str], rows: Iterator[list[str]]) -> Iterator[str]:
    for texts in [header, ["---", *["---:"] * (len(header) - 1)], *rows]:
        yield f"| {' | '.join(texts)} |"


def main() -> None:
    """Prints the tables of every quantized record given."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    parser.add_argument("--most", type=int, default=10, help="rows of a table (default: %(default)s)")
    args = parser.parse_args()
    evidence = Evidence(args.records[0].resolve().parents[1])
    records = [record for record in read_records(args.records) if record.get("curves")]
    if not records:
        raise UserError("none of the records has curves: full precision alone has no error")
    for name, record in zip(names(records), records, strict=True):
        print(f"## {name} {bits(record)}\n" if bits(record) not in name else f"## {name}\n")
        print("\n".join(tables(record, evidence, args.most)), end="\n\n")


if __name__ == "__main__":
    with one_line():
        main()
