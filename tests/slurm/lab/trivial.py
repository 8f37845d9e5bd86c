"""What runs in most jobs of these tests: it leaves traces, takes its time, fails if it is told to."""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from uuid import uuid4

from submitit.helpers import DelayedSubmission


@dataclass(frozen=True)
class Trivial:
    """``seconds`` of sleep, in steps that a later start does not repeat; ``fails`` at their end."""

    seconds: float = 0
    fails: bool = False
    name: str = ""
    folder: str = ""

    def __call__(self) -> None:
        trace = Path(self.folder)
        (trace / f"{self.name}.started-{uuid4().hex}").touch()
        while len(list(trace.glob(f"{self.name}.step-*"))) < self.seconds / 0.1:
            time.sleep(0.1)
            (trace / f"{self.name}.step-{uuid4().hex}").touch()
        if self.fails:
            raise ArithmeticError("not today")
        (trace / f"{self.name}.done").touch()

    def checkpoint(self) -> Any:
        (Path(self.folder) / f"{self.name}.checkpoint").touch()
        return DelayedSubmission(self)
