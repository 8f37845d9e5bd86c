"""Identity of records by content: a name or a path does not tell which weights it stood for, keys and digests do.

network   the key of the full-precision samples: weights, architecture, sampler, noise, environment
identity  the key that the whole cell would have with the seed left out
baseline  of a cell: among the records of its own network
seeds     records of one identity
"""

from collections.abc import Sequence
from typing import Any

from qdexp.errors import UserError
from qdexp.record import Record, flat

PLACES = {
    *("model.weights", "model.first_stage.weights", "model.condition.weights", "quantizer.steps.released.file"),
    *("protocol.reference", "protocol.prompts", "protocol.clip", "protocol.extractor_weights", "trajectory.prompts"),
}
"""Options that say where something lies, and not what lies there."""
UNTOLD = ("out", "sweep", "tracker", "device", "cluster", "recon", "memory", "seed", "metric", "inspection.lpips")
"""Options that tell no configuration from another: what of ``recon`` is used, the steps tell; a cell is the same whatever is
measured of it."""


def network(record: Record) -> str:
    """Equal for cells that are compared with the same full-precision images, and for these themselves."""
    keys = record["keys"]
    return str(keys.get("full_precision") or keys.get("samples") or record["cell"])


def full_precision(record: Record) -> bool:
    """Whether the cell quantizes nothing."""
    return record["axes"]["method"] == "fp" or record["axes"].get("quantizer") == "none"


def calibrated(record: Record) -> bool:
    """Whether the seed moves the cell's numbers, by way of its calibration."""
    return not full_precision(record) and record["axes"].get("calib", "none") != "none"


def grouped(records: Sequence[Record]) -> list[list[Record]]:
    """Records that differ in nothing but their seed, in the order of their first; a cell that is given twice counts once.

    Raises UserError where a cell is given twice and was measured differently, as on two machines.
    """
    groups: dict[tuple[str, ...], dict[str, Record]] = {}
    for record in records:
        axes = record["axes"]
        group = groups.setdefault((str(axes.get("model")), axes["method"], record["identity"]), {})
        known = group.setdefault(record["cell"], record)
        if known.get("metrics") != record.get("metrics"):
            raise UserError(f"{record['cell']} is given twice, with different numbers: give one of the two")
    return [list(group.values()) for group in groups.values()]


def options(record: Record) -> dict[str, Any]:
    """The frozen config as ``{"calib.timesteps": 10}``, without what does not change a number, and without paths."""
    told = flat(record["config"])
    return {name: value for name, value in told.items() if not name.startswith(UNTOLD) and name not in PLACES}


def contents(record: Record) -> dict[str, str]:
    """The digests of the files that the cell read, by what they are."""
    return {name: file["sha256"] for name, file in record["files"].items()}


def differing(records: Sequence[Record]) -> set[str]:
    """The options in which the records differ, and the files whose content differs."""
    told = [options(record) | contents(record) for record in records]
    return {name for one in told for name in one if any(other.get(name) != one[name] for other in told)}


class Baselines:
    """The baselines that cells are compared with: ``named`` is a method, or a record's cell. Where none is named, full
    precision is the baseline, or without it ``row``, records that differ in their seed alone."""

    def __init__(self, records: Sequence[Record], named: str | None = None, row: Sequence[Record] = ()) -> None:
        self.named = named or "fp"
        self.rivals = [record for record in records if self.named in (record["cell"], record["axes"]["method"])]
        self.row = list(row) if named is None and not self.rivals else []
        if not self.rivals and named not in (None, "fp"):
            known = ", ".join(sorted({record["axes"]["method"] for record in records}))
            raise UserError(f"--baseline {named}: no such cell or method; methods there: {known}")

    def of(self, record: Record) -> Record | None:
        """The baseline of ``record``: of the same network. Where a method is named that depends on more than that, the one of
        the same seed and bits, and of several the one that differs from the record in the fewest options.

        None where there is none, or none alone for full precision, which has neither seed nor bits. Raises UserError where
        several are as near.
        """
        if self.row:
            found = [rival for rival in self.row if network(rival) == network(record) and _same_seed(rival, record)]
            return found[0] if found else None
        found = [rival for rival in self.rivals if network(rival) == network(record)]
        if not found or self.named == found[0]["cell"] or full_precision(found[0]):
            return found[0] if found else None
        if full_precision(record):
            return found[0] if len(found) == 1 else None
        bits, seed = record["config"].get("quant"), record["axes"].get("seed")
        found = [one for one in found if one["config"].get("quant") == bits and one["axes"].get("seed") == seed]
        apart = [len(differing([record, rival])) for rival in found]
        nearest = [rival for rival, count in zip(found, apart, strict=True) if count == min(apart)]
        if len(nearest) > 1:
            cells = ", ".join(one["cell"] for one in nearest)
            raise UserError(
                f"--baseline {self.named}: {record['cell']} could be compared with any of {cells}; name one of them"
            )
        return nearest[0] if nearest else None


def _same_seed(rival: Record, record: Record) -> bool:
    """Whether both have the same seed, or the rival none that matters."""
    return not calibrated(rival) or rival["axes"].get("seed") == record["axes"].get("seed")
