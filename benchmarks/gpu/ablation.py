"""The ablation of the embedded U-Net, short, on the device beside the CPU: the same noise, paired differences.

What is calibrated goes other ways with other last bits, as with another seed: a difference beyond the CPU's interval, which is
over the images alone, is not yet a fault. Full precision has to agree.
"""

from collections.abc import Iterator
from pathlib import Path

from benchmarks.gpu.setup import Row, Setup
from qdexp.cell import preflight
from qdexp.numbers import numbers_of
from qdexp.record import Record
from qdexp.report.comparison import write_difference, write_number
from qdexp.report.evidence import Evidence

METHODS = ("fp", "ptq", "timestep_aware", "reconstruction", "qdiffusion")


def run(setup: Setup) -> Iterator[Row]:
    """A row for each method and number, as soon as both have finished the method; both run at the same time."""
    with setup.apart(records, setup.kind, "device") as there, setup.apart(records, "cpu", "cpu") as here:
        for method, one, other in zip(METHODS, there, here, strict=True):
            yield from compared(method, *one, *other)


def records(setup: Setup, kind: str, out: str) -> Iterator[tuple[Path, Record]]:
    """The record of each method, and the folder that it lies in."""
    folder = setup.folder / out
    for method in METHODS:
        yield folder, preflight(setup.cell("ddpm_fashion", f"method={method}", f"device={kind}", f"out={folder}")).run()


def compared(method: str, out: Path, record: Record, other_out: Path, other: Record) -> Iterator[Row]:
    """The numbers of two records that have intervals."""
    one, two = (Evidence(folder).estimates(each) for folder, each in ((out, record), (other_out, other)))
    for number in numbers_of([record, other]):
        if number.key in one and number.key in two:
            cpu, found = two[number.key].interval(), one[number.key].interval()
            yield {
                "method": method,
                "number": number.title,
                "CPU": write_number(number, cpu),
                "device": write_number(number, found),
                "device - CPU": write_difference(number, (one[number.key] - two[number.key]).interval()),
                "within the CPU's interval": "yes" if cpu.low <= found.value <= cpu.high else "no",
            }
