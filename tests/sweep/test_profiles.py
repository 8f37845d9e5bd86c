"""What a cluster user edits and runs, as it lies in jobs/."""

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qdexp.paths import conf_folder
from qdexp.sweep.freeze import freeze

JOBS = conf_folder().parent / "jobs"


@pytest.mark.parametrize("profile", sorted(path.stem for path in (JOBS / "cluster").glob("*.yaml")))
def test_every_profile_is_a_cluster(profile: str) -> None:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        overrides = [f"hydra.searchpath=[file://{JOBS}]", f"cluster={profile}"]
        cluster = freeze(compose("config", overrides, return_hydra_config=True)).cluster
    assert cluster.name == profile
    assert cluster.resources("weights").minutes > 0


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
