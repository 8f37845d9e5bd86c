"""What fake quantization costs in sampling, with the embedded U-Net."""

from collections.abc import Iterator

from benchmarks import sampling
from benchmarks.gpu.setup import Row, Setup
from benchmarks.subject import Subject

ROWS, REPETITIONS = 64, 5


def run(setup: Setup) -> Iterator[Row]:
    """As ``python -m benchmarks sampling``."""
    config = setup.cell("ddpm_fashion", "method=qdiffusion")
    subject = Subject(config, 8 if setup.small else ROWS, setup.folder)
    for row in sampling.run(subject, 1 if setup.small else REPETITIONS):
        yield dict(zip(sampling.HEADER, row, strict=True))
