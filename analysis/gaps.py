"""How much of what quantization costs each method wins back, over the seeds of a sweep.

    python -m qdexp -m seed=0,1,2
    python -m qdexp -m seed=0,1,2 method=timestep_aware quant=w32a8
    python analysis/gaps.py outputs/records/*.json

    rounding  (noise error of nearest rounding - of the method) / (of nearest rounding - of quantized activations alone)
    FID       (FID of ptq - of the method) / (of ptq - of fp)

Nearest rounding is the method timestep_aware. Means over the seeds with 95 % intervals: those of the noise error over the seeds
alone, those of FID over seeds and images. A share is told only where the interval of the gap itself is above zero.
"""

import argparse
from collections.abc import Sequence
from pathlib import Path

from qdexp.errors import UserError, one_line
from qdexp.record import Record, read_records
from qdexp.report.evidence import Evidence
from qdexp.report.identity import grouped, network
from qdexp.report.protocols import common_protocol
from qdexp.report.rows import row_names
from qdexp.statistics.estimate import Estimate, Interval, over_seeds, pool

BITS, ACTIVATIONS_ALONE = "w4a8", "w32a8"
METHODS = ("timestep_aware", "reconstruction", "qdiffusion")
NONE = "-"


class Study:
    """The complete cells of an ablation: one network, one configuration for each method and bit-width, one record a seed."""

    def __init__(self, records: Sequence[Record], out: Path) -> None:
        """Raises UserError where the records are of several networks or protocols, or two claim one place."""
        common_protocol(records)
        groups = grouped(records)
        named = list(zip(row_names(groups), groups, strict=True))
        networks = {network(group[0]): name for name, group in named}
        if len(networks) > 1:
            raise UserError(f"the records are of several networks ({', '.join(networks.values())}): give those of one")
        self.places: dict[tuple[str, str], dict[int, Record]] = {}
        for name, group in named:
            place = group[0]["axes"]["method"], group[0]["axes"]["quant"]
            if place in self.places:
                raise UserError(f"{name} is not the only {' '.join(place)}: give the records of one configuration")
            self.places[place] = {record["axes"]["seed"]: record for record in group}
        self.seeds = sorted(self.places.get(("timestep_aware", ACTIVATIONS_ALONE), {}))
        self.estimates = {record["cell"]: Evidence(out).estimates(record) for record in records}

    @property
    def whole(self) -> bool:
        """Whether every method is there for every seed, of which there are two at least."""
        wanted = [("ptq", BITS), *((method, BITS) for method in METHODS)]
        there = all(set(self.seeds) <= self.places.get(place, {}).keys() for place in wanted)
        return len(self.seeds) > 1 and there and ("fp", "full") in self.places

    def errors(self, method: str, quant: str = BITS) -> list[float]:
        """The noise error of each seed."""
        return [self.places[method, quant][seed]["metrics"]["noise_error"] for seed in self.seeds]

    def fids(self, method: str) -> list[Estimate] | None:
        """FID of each seed, that of full precision for all; None where the store does not tell what images make of it."""
        found = self.places[method, "full" if method == "fp" else BITS]
        cells = [found[seed if method != "fp" else next(iter(found))]["cell"] for seed in self.seeds]
        known = [self.estimates[cell]["fid"] for cell in cells if "fid" in self.estimates[cell]]
        return known if len(known) == len(cells) else None

    def row(self, method: str) -> list[str]:
        """A method's noise error and FID, and the shares of the two gaps that it closes."""
        errors, fids = self.errors(method), self.fids(method)
        nearest, alone = self.errors("timestep_aware"), self.errors("timestep_aware", ACTIVATIONS_ALONE)
        rounding = share(nearest, errors, alone)
        told = [written(over_seeds([1e6 * error for error in errors]), 0), NONE if rounding is None else written(rounding, 1)]
        ptq, full = self.fids("ptq"), self.fids("fp")
        if fids is None or ptq is None or full is None:
            return [method, *told, NONE, NONE]
        closed = share_of_fid(ptq, fids, full)
        return [method, *told, written(pool(fids), 2), NONE if closed is None else written(closed, 1)]


def share(high: Sequence[float], value: Sequence[float], low: Sequence[float]) -> Interval | None:
    """(high - value) / (high - low) in percent over the seeds; None where the gap may be none."""
    gaps = [upper - lower for upper, lower in zip(high, low, strict=True)]
    if over_seeds(gaps).low <= 0:
        return None
    return over_seeds([100 * (upper - middle) / gap for upper, middle, gap in zip(high, value, gaps, strict=True)])


def share_of_fid(high: Sequence[Estimate], value: Sequence[Estimate], low: Sequence[Estimate]) -> Interval | None:
    """The same over seeds and images."""
    gaps = [upper - lower for upper, lower in zip(high, low, strict=True)]
    if pool(gaps).low <= 0:
        return None
    closed = [upper - middle for upper, middle in zip(high, value, strict=True)]
    return pool(
        [Estimate(100 * won.value / gap.value, 100 * won.replicates / gap.replicates)
         for won, gap in zip(closed, gaps, strict=True)]
    )  # fmt: skip


def written(interval: Interval, digits: int) -> str:
    """Mean and 95 % interval."""
    return f"{interval.value:.{digits}f} [{interval.low:.{digits}f}, {interval.high:.{digits}f}]"


def main() -> None:
    """Prints the table as Markdown."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("records", type=Path, nargs="+")
    paths = parser.parse_args().records
    study = Study([record for record in read_records(paths) if record["status"] == "complete"], paths[0].resolve().parents[1])
    if not study.whole:
        parser.error("give the records of both sweeps, for at least two seeds")
    header = ["method", "noise error x10^6", "of the rounding error closed, %", "FID", "of the FID gap of ptq closed, %"]
    rows = [study.row(method) for method in METHODS]
    print("\n".join(f"| {' | '.join(texts)} |" for texts in [header, ["---", *["---:"] * 4], *rows]))


if __name__ == "__main__":
    with one_line():
        main()
