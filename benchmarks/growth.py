"""How the data path and whole quantization grow with the rows, and with the width of the model."""

from collections.abc import Iterator
from pathlib import Path

from benchmarks import data_path, quantizing
from benchmarks.subject import Subject, resized
from benchmarks.timing import ratios, seconds
from qdexp.config import Config

HEADER = ["model", "M parameters", "rows", "one pass, s (CPU)", "streams, passes", "restarting, passes", "restarting / streams",
          "quantization, passes", "s (CPU)", "peak memory, MiB"]  # fmt: skip

SHARE = 4
"""The fewest rows are this part of all, the most this many times as many."""

WIDTHS = (0.5, 1.0, 2.0)


def subjects(config: Config, rows: int, folder: Path) -> Iterator[Subject]:
    """The model of the config at a quarter of the rows, narrower, as it is and wider; then at all and at four times as many.
    What is small comes first: a process keeps what it has freed, so that a peak is that of what came before too."""
    few = rows // SHARE
    for width in WIDTHS:
        yield Subject(config if width == 1 else resized(config, width, folder), few, folder)
    yield from (Subject(config, count, folder) for count in (rows, SHARE * rows))


def row(subject: Subject) -> list[str]:
    """One row of the table; ratios are of CPU times on a CPU."""
    streams, restarts = data_path.compare(subject, repetitions=1)
    costs = quantizing.quantize(subject)
    clock = 0 if subject.device.type == "cuda" else 1
    whole = costs.whole
    parameters = sum(value.numel() for value in subject.full().parameters()) / 1e6
    return [
        subject.config.model.name,
        f"{parameters:.2f}",
        f"{subject.rows:,}",
        seconds(costs.passes),
        costs.in_passes(streams[0])[clock],
        costs.in_passes(restarts[0])[clock],
        ratios(restarts, streams)[clock],
        costs.in_passes(whole)[clock],
        seconds([whole]),
        f"{whole.peak_mb:,.0f}",
    ]
