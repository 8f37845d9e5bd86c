"""What only a GPU can tell: one command, whose file can be sent in.

    python -m benchmarks gpu                               all sections, at most eight minutes; writes gpu.json
    python -m benchmarks gpu speed peaks                   some
    python -m benchmarks gpu --device cpu --small          everything tiny on the CPU: whether the command itself works

    machine         the GPU, its driver, CUDA, cuDNN, torch
    fake_quantize   torch's kernel for CUDA against our formula and against the CPU, bit by bit; what becomes of NaN
    speed           sampling with the quantized embedded U-Net, in the time of full precision
    peaks           the allocator's peak beside the plan, for passes and learning at full width (ldm_bedroom, sd_v1_4; random)
    repeated        a U-Net and a DiT: do the same bits come out again, and from a process that was killed and resumed?
    rates           passes, searching, rounding and learning at full width (ldm_bedroom, random)
    ablation        the short ablation of the embedded U-Net on the device, beside the CPU's intervals

Each section runs in processes of its own. What it has found is in the file at once; one that fails, or that no time is left
for, is told there, and the others go on.
"""

import argparse
import json
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from benchmarks import markdown
from benchmarks.gpu import ablation, fake_quantize, machine, peaks, rates, repeated, speed
from benchmarks.gpu.apart import OutOfTimeError
from benchmarks.gpu.setup import Row, Setup
from qdexp import files, provenance
from qdexp.errors import one_line

SECONDS = 480
FORMAT = 1
DONE, FAILED, STOPPED, SKIPPED = "done", "failed", "stopped", "skipped"


@dataclass(frozen=True)
class Section:
    """``run`` yields its rows; ``least``: seconds, fewer of which are not worth a start; ``share``: of all that there are, the
    most that it gets."""

    run: Callable[[Setup], Iterator[Row]]
    least: float
    share: float


def _apart(run: Callable[[Setup], Iterator[Row]]) -> Callable[[Setup], Iterator[Row]]:
    return lambda setup: setup.rows(run)


SECTIONS = {
    "machine": Section(_apart(machine.run), 0, 0.15),
    "fake_quantize": Section(_apart(fake_quantize.run), 10, 0.15),
    "speed": Section(_apart(speed.run), 20, 0.2),
    "peaks": Section(_apart(peaks.run), 40, 0.3),
    "repeated": Section(repeated.run, 60, 0.5),
    "rates": Section(_apart(rates.run), 40, 0.3),
    "ablation": Section(ablation.run, 60, 1),
}
"""The dearest last."""


@dataclass
class Report:
    """What has been found so far: on the screen, and the whole in a file after every row. ``seconds``: what there is in all."""

    path: Path
    seconds: float
    content: dict[str, Any]
    sections: dict[str, dict[str, Any]] = field(default_factory=dict)

    def section(self, name: str, section: Section, setup: Setup) -> str:
        """Runs it, and returns how it ended."""
        begin = time.monotonic()
        found = self.sections[name] = {"status": "running", "seconds": 0.0, "rows": []}
        print(f"\n{name}\n", flush=True)
        if setup.end - begin < section.least:
            found["status"] = SKIPPED
        else:
            try:
                for row in section.run(replace(setup, end=min(setup.end, begin + section.share * self.seconds))):
                    if not found["rows"] or found["rows"][-1].keys() != row.keys():
                        print(markdown.head(list(row)))
                    print(markdown.line([str(value) for value in row.values()]), flush=True)
                    found["rows"].append(row)
                    self.write()
                found["status"] = DONE
            except OutOfTimeError:
                found["status"] = STOPPED
            except Exception as error:  # the other sections shall run
                found |= {"status": FAILED, "error": f"{type(error).__name__}: {error}"}
        found["seconds"] = round(time.monotonic() - begin, 1)
        self.write()
        print(_told(found, setup.end - begin), flush=True)
        return str(found["status"])

    def write(self) -> None:
        files.write_text(self.path, json.dumps({**self.content, "sections": self.sections}, indent=1, default=str))


def _told(found: Mapping[str, Any], left: float) -> str:
    """How a section ended, below its table."""
    if found["status"] == SKIPPED:
        return f"(skipped: {max(0.0, left):.0f} s were left)"
    how = {STOPPED: "; stopped: its time was up", FAILED: "; failed"}.get(found["status"], "")
    return "\n".join([f"\n({found['seconds']} s{how})", *([found["error"]] if "error" in found else [])])


def main(arguments: Sequence[str]) -> None:
    """See the module's docstring. Exits with 2 where there is no such device, and with 1 where a section failed."""
    parser = argparse.ArgumentParser(
        "python -m benchmarks gpu", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument(
        "sections", nargs="*", metavar="SECTION", help=f"{', '.join(SECTIONS)}; all of them where none is named"
    )
    parser.add_argument("--out", type=Path, default=Path("gpu.json"), help="the file; gpu.json by default")
    parser.add_argument("--device", choices=["cuda", "cpu"], default="cuda")
    parser.add_argument("--small", action="store_true", help="everything tiny: no number says anything")
    parser.add_argument("--seconds", type=float, default=SECONDS, help=f"what may be taken in all; {SECONDS} by default")
    options = parser.parse_args(arguments)
    if unknown := set(options.sections) - SECTIONS.keys():
        parser.error(f"no section is called {', '.join(sorted(unknown))}; choose from {', '.join(SECTIONS)}")
    if options.device == "cuda" and not torch.cuda.is_available():
        parser.exit(2, "qdexp: torch sees no CUDA device here; run this on a machine with a GPU, or see whether it works by "
                       "--device cpu --small\n")  # fmt: skip
    begin = time.monotonic()
    with one_line(), tempfile.TemporaryDirectory() as folder:
        files.require_writable(options.out.resolve().parent, f"--out {options.out}")
        setup = Setup(options.device, options.small, Path(folder), begin + options.seconds)
        told = provenance.collect(torch.device("cpu"))
        kept = {name: told[name] for name in ("time", "command", "git_commit", "git_dirty", "python", "versions", "platform")}
        report = Report(options.out, options.seconds, {"format": FORMAT, "small": options.small, **kept})
        chosen = {name: one for name, one in SECTIONS.items() if name in (options.sections or SECTIONS)}
        ends = [report.section(name, one, setup) for name, one in chosen.items()]
    print(f"\n{time.monotonic() - begin:.0f} s; {options.out}")
    sys.exit(1 if FAILED in ends else 0)
