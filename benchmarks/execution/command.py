"""How fast quantized networks run on this CPU: one step of a sampler in each arithmetic, side by side.

    python -m benchmarks execution                         all sections, with one thread and with all; writes execution.json
    python -m benchmarks execution ddpm_fashion            some
    python -m benchmarks execution --threads 1 --eager     with one thread; without compilers, which take most of the time
    python -m benchmarks execution --small                 everything tiny: whether the command itself works

    peak            large matrix products, in float32 and of integers
    ddpm_fashion, dit_fashion, ldm_bedroom
                    W4A8 at full width (ldm_bedroom: random weights): float32 and simulated arithmetic, eager and compiled,
                    and int8. Times, and their ratios to float32; the share of the MACs that is of integers; time by operator

Ratios are medians over the repetitions, with the least and the largest; what is compared runs in turn.
"""

import argparse
import os
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path

import torch

from benchmarks.execution import peak, speed
from benchmarks.gpu.command import FAILED, FORMAT, Report, Section
from benchmarks.gpu.setup import Row, Setup
from qdexp import files, machine, provenance
from qdexp.errors import one_line

SECTIONS = ("peak", *speed.ROWS)
SECONDS = 2 * 60 * 60


def _run(setup: Setup, name: str, threads: Sequence[int], compiled: bool) -> Iterator[Row]:
    """A section, with each number of threads in a process of its own."""
    for count in threads:
        work = setup.rows(peak.run, count) if name == "peak" else setup.rows(speed.run, name, count, compiled)
        yield from work


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring. Exits with 1 where a section failed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks execution", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all of them where none is named"
    )
    parser.add_argument("--out", type=Path, default=Path("execution.json"), help="the file; execution.json by default")
    parser.add_argument("--threads", type=int, nargs="+", default=sorted({1, cores}), help=f"by default 1 and {cores}")
    parser.add_argument("--eager", action="store_true", help="compile nothing")
    parser.add_argument("--small", action="store_true", help="everything tiny: no number says anything")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"what may be taken in all; {SECONDS} by default")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - set(SECTIONS):
        parser.error(f"no section is called {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    if min(options.threads) < 1:
        parser.error("--threads must be at least 1")
    begin = time.monotonic()
    with one_line(), tempfile.TemporaryDirectory() as folder:
        files.require_writable(options.out.resolve().parent, f"--out {options.out}")
        setup = Setup("cpu", options.small, Path(folder), begin + options.seconds)
        told = provenance.collect(torch.device("cpu"))
        kept = {name: told[name] for name in ("time", "command", "git_commit", "git_dirty", "python", "versions", "platform")}
        kept["machine"] = machine.line(torch.device("cpu"))
        print(kept["machine"], flush=True)
        report = Report(options.out, options.seconds, {"format": FORMAT, "small": options.small, **kept})
        ends = []
        for name in (one for one in SECTIONS if one in (options.sections or SECTIONS)):
            run = partial(_run, name=name, threads=options.threads, compiled=not options.eager)
            ends.append(report.section(name, Section(run, 5, 1), setup))
    print(f"\n{time.monotonic() - begin:.0f} s; {options.out}")
    sys.exit(1 if FAILED in ends else 0)
