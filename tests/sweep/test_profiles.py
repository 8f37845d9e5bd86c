"""What a cluster user edits and runs, as it lies in jobs/."""

import os
import shutil
import subprocess
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir

from qdexp import device as devices
from qdexp.cell import Cell
from qdexp.config import Config
from qdexp.footprint.needs import Need, need_of
from qdexp.footprint.places import OnCluster
from qdexp.footprint.room import misfits
from qdexp.paths import conf_folder
from qdexp.stages.base import Sharded, Stage
from qdexp.sweep.freeze import freeze
from qdexp.sweep.memory import kinds
from qdexp.sweep.plan import hours, macs

JOBS = conf_folder().parent / "jobs"


PROFILES = sorted(path.stem for path in (JOBS / "cluster").glob("*.yaml"))
TFLOPS = 20
"""What the profiles assume of a device."""
BEDROOM = ["experiment=paper_bedroom", "method=qdiffusion", "model.weights=random", "model.first_stage.weights=random"]
"""Its largest cell, but for bits."""


def frozen(*overrides: str) -> Config:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return freeze(compose("config", [f"hydra.searchpath=[file://{JOBS}]", *overrides], return_hydra_config=True))


@pytest.fixture(scope="module")
def planned(tmp_path_factory: pytest.TempPathFactory) -> list[tuple[Cell, Stage, Need, float]]:
    """The stages of the cell, what they take and how many MACs they are."""
    out = tmp_path_factory.mktemp("bedroom")
    with devices.elsewhere("cuda"):
        cell = Cell(frozen(*BEDROOM, "protocol.extractor=none", f"out={out}"))
        stages = [stage for role, stage in cell.stages.items() if role != "full_precision"]
    return [(cell, stage, need_of(stage, cell.config), macs(cell.config, stage) or 0) for stage in stages]


@pytest.mark.parametrize("profile", PROFILES)
def test_a_profile_is_enough_for_a_paper(profile: str, planned: list[tuple[Cell, Stage, Need, float]]) -> None:
    cluster = frozen(f"cluster={profile}").cluster
    assert cluster.name == profile
    assert cluster.tflops in (TFLOPS, None)
    runs = 1 + cluster.restarts if profile == "preemptible" else 1
    needed = dict[str, float]()
    for cell, stage, need, count in planned:
        time = 60 * (hours(count, replace(cluster, tflops=TFLOPS)) or 0)
        parts = min(cluster.parts, len(stage.shards)) if isinstance(stage, Sharded) else 1
        for kind in kinds(cell, stage):
            assert list(misfits(stage.name, need, torch.device("cuda"), OnCluster().room(stage.device, cluster, kind))) == []
            needed[kind] = needed.get(kind, 0) + time / parts
    assert needed["samples"] > 60 and needed["weights"] > 60
    assert [kind for kind, time in needed.items() if time > runs * cluster.resources(kind).minutes] == []


@pytest.fixture
def arguments(tmp_path: Path) -> Callable[..., list[str]]:
    """``arguments(script, *given, **environment)``: what the script hands to python."""
    python = tmp_path / "bin" / "python"
    python.parent.mkdir()
    python.write_text("#!/bin/sh\nprintf '%s\\n' \"$@\"\n")
    python.chmod(0o755)

    def run(script: Path, *given: str, **environment: str) -> list[str]:
        path = f"{python.parent}:{os.environ['PATH']}"
        done = subprocess.run([script, *given], env={"PATH": path, **environment}, capture_output=True, text=True, check=True)
        return done.stdout.splitlines()

    return run


@pytest.mark.parametrize("script", sorted(JOBS.glob("*.sh")), ids=lambda path: path.stem)
def test_every_script_submits_its_study(script: Path, arguments: Callable[..., list[str]]) -> None:
    module, name, *rest = arguments(script, "cluster=mine", "seed=0,1")
    assert (module, name) == ("-m", "qdexp")
    assert {"-m", "hydra/launcher=slurm", f"hydra.searchpath=['file://{JOBS}']", f"sweep={script.stem}"} <= set(rest)
    assert rest[-2:] == ["cluster=mine", "seed=0,1"]


def test_a_script_with_configs_of_ones_own(
    arguments: Callable[..., list[str]],
    qdexp: Callable[..., tuple[int, str, str]],
    own_conf: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In a folder of one's own, whose paths are one's own too."""
    shutil.copytree(own_conf, tmp_path / "own study" / "my conf, mine")
    monkeypatch.chdir(tmp_path / "own study")
    given = arguments(JOBS / "calibration.sh", "cluster=one_machine", "calib=last,first", CONF="my conf, mine")[2:]
    code, out, err = qdexp(*given, "hydra.launcher.dry=true")
    assert (code, err) == (0, "")
    assert "sweep calibration: 2 cells" in out
