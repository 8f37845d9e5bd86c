"""A time limit that is reached while AdaRound iterates, on a real Slurm."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from slurm_helpers import wait_for

from qdexp import files
from qdexp.cell import Cell
from qdexp.config import Resources
from qdexp.layout import Layout
from qdexp.sweep.jobs import Job, Node
from qdexp.sweep.launch import Frozen
from qdexp.sweep.slurm import Slurm

SLOW = '''
import os
import time
from dataclasses import dataclass
from pathlib import Path

from qdexp.methods import AdaRound


@dataclass(frozen=True, kw_only=True)
class SlowRounding(AdaRound):
    """As long as the environment says it takes for each iteration, which it tells of; the bits are those of AdaRound."""

    def apply(self, work):
        from qdexp.recon.learning import WeightReconstruction

        step, told = WeightReconstruction.training_step, Path(os.environ["ITERATIONS"])

        def slow(module, sample, number):
            with told.open("a") as log:
                log.write(f"{number}\\n")
            time.sleep(float(os.environ["SECONDS"]))
            return step(module, sample, number)

        WeightReconstruction.training_step = slow
        try:
            super().apply(work)
        finally:
            WeightReconstruction.training_step = step
'''
ITERATIONS = 8


def results(out: Path) -> dict[str, Any]:
    """All that must not depend on how often a job was stopped."""
    (record,) = (files.read_sealed(path) for path in (out / "records").iterdir())
    manifests = {folder.name: files.read_sealed(folder / "manifest.json")["files"] for folder in (out / "store").glob("[!.]*")}
    return {part: record[part] for part in ("status", "keys", "metrics", "curves", "reconstruction")} | {"store": manifests}


def logs(out: Path) -> str:
    return "".join(path.read_text(errors="replace") for path in Layout(out).logs.rglob("*.out"))


@pytest.mark.slow
def test_a_time_limit_that_is_reached_while_adaround_iterates(
    lab: Lab, cell_of: Callable[..., Cell], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The job has two minutes, what it learns takes more. It is warned, twelve seconds before the end and up to a minute before
    that, is queued again, goes on at the block at which it was stopped, and its cell ends with the bits of one that nothing has
    stopped. 4 minutes."""
    (tmp_path / "slow_rounding.py").write_text(SLOW)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    named = {"_target_": "slow_rounding.SlowRounding", "iterations": ITERATIONS, "batch": 4, "heldout": 4}
    options = ("method=reconstruction", *(f"quantizer.steps.weights.{name}={value}" for name, value in named.items()))
    whole, stopped = (tmp_path / name for name in ("whole", "stopped"))

    def tell(seconds: float, out: Path) -> Path:
        monkeypatch.setenv("SECONDS", str(seconds))
        monkeypatch.setenv("ITERATIONS", str(out.with_suffix(".iterations")))
        return out.with_suffix(".iterations")

    told = tell(0, whole)
    cell_of(*options, f"out={whole}").run()
    every = told.read_text().split()
    blocks = len(every) // ITERATIONS
    assert every == list(map(str, range(ITERATIONS))) * blocks

    told = tell(130 / len(every), stopped)
    sweep = Frozen([cell_of(*options, f"out={stopped}")])
    sweep.write()

    def task(node: Node) -> Job:
        return replace(sweep.job(node), minutes=cluster.resources(node.kind).minutes)

    limits = {"default": Resources(minutes=60), "weights": Resources(minutes=2)}  # fewer than a config may say: for the test
    cluster = replace(sweep.cluster, partition="main", restarts=10, stages=limits)
    Slurm(stopped, "trial", cluster, task, sweep.done).submit(sweep.nodes)
    (record,) = (cell.record for cell in sweep.cells.values())
    wait_for(record.exists, 600)
    lab.drained()

    assert results(stopped) == results(whole)
    costs = json.loads(record.read_text())["costs"]["weights"]
    assert costs["resumed"] == 1.0
    again, stops = told.read_text().split(), logs(stopped).count("Requeued job")
    assert stops
    assert again.count("0") <= blocks + stops  # what was finished of the blocks is not learned again
    assert len(again) <= len(every) + stops * ITERATIONS
