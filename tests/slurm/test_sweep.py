"""Sweeps as a user submits them, through a real Slurm, down to their records."""

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from lab import Lab
from slurm_helpers import wait_for
from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob

import qdexp as package
from qdexp import files
from qdexp.errors import UserError
from qdexp.sweep import manifest
from qdexp.sweep.__main__ import main as sweep_command

SOURCE = Path(package.__file__).parents[1]
Command = Callable[..., tuple[int, str, str]]
Executed = Callable[..., list[str]]

BROKEN = '''
from dataclasses import dataclass
from qdexp.quant.ranges import MinMax


@dataclass(frozen=True)
class Broken(MinMax):
    """Fails in the middle of a job, not before."""

    def start(self, scheme, groups):
        raise ArithmeticError("cannot range:\\nnot today")
'''


@pytest.fixture
def down(lab: Lab) -> Iterator[Callable[[], None]]:
    """The cluster takes jobs and starts none until the fixture is called."""
    lab.run("scontrol", "update", "partitionname=main", "state=down")
    yield lambda: lab.run("scontrol", "update", "partitionname=main", "state=up")
    lab.run("scontrol", "update", "partitionname=main", "state=up")


def records(out: Path) -> dict[str, dict[str, Any]]:
    """The records of an output folder by method."""
    found = [json.loads(path.read_text()) for path in (out / "records").glob("*.json")]
    return {record["axes"]["method"] + record["axes"]["quantizer"]: record for record in found}


def shards(out: Path) -> dict[str, str]:
    return {f"{path.parent.name}/{path.name}": files.sha256(path) for path in out.glob("store/samples-*/shard-*")}


@pytest.mark.slow
def test_a_sweep_from_command_to_table(
    lab: Lab, down: Callable[[], None], qdexp: Command, small: list[str], own_conf: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, executed: Executed, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    """One broken cell of three, samplings in parts, a YAML that is edited after the submission, a cancel between."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "broken_range.py").write_text(BROKEN)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    own = tmp_path / "conf"
    shutil.copytree(own_conf, own)
    path = f"hydra.searchpath=[file://{own}]"
    broken = "quantizer=linear quantizer.steps.act.range._target_=broken_range.Broken"
    cells = f'hydra.sweeper.cells=["method=fp","method=ptq","{broken}"]'
    command = ("-m", path, cells, "hydra/launcher=slurm", "cluster.parts=2", "cluster.parallel=8", "out=out")
    code, out, err = qdexp(*command)
    assert (code, err) == (0, "")
    assert "sweep trial: 3 cells, 0 of them complete" in out
    (submitted,) = re.findall(r"submitted (\d+) jobs", out)
    assert executed() == []

    yaml = own / "model" / "tiny.yaml"
    yaml.write_text(yaml.read_text().replace("beta_end: 0.02", "beta_end: 0.03"))
    _, again, _ = qdexp(*command)
    assert "0 of them complete" in again  # another model: other stages
    sweep_command(["cancel", "trial", "--out", "out"])
    yaml.write_text(yaml.read_text().replace("beta_end: 0.03", "beta_end: 0.02"))
    assert not lab.output("squeue", "-h")
    _, third, _ = qdexp(*command)
    assert f"submitted {submitted} jobs" in third
    _, fourth, _ = qdexp(*command)
    assert f"submitted 0 jobs; {submitted} were in the queue already" in fourth
    yaml.write_text("no: model")
    (tmp_path / "broken_range.py").write_text("raise ImportError('edited while jobs wait')")
    down()
    lab.drained(240)

    def status() -> str:
        capsys.readouterr()
        sweep_command(["status", "--out", "out"])
        return capsys.readouterr().out

    wait_for(lambda: "waiting" not in status())  # accounting lags behind the queue
    said = status()
    assert "2/6 cells complete" in said  # with the three that were cancelled
    assert "ArithmeticError: not today" in said
    found = records(tmp_path / "out")
    assert {name: record["status"] for name, record in found.items()} == {
        "fpnone": "complete",
        "ptqsearch": "complete",
        "linear-uniformlinear": "failed",
    }
    assert found["linear-uniformlinear"]["error"]["stage"] == "act"
    assert found["linear-uniformlinear"]["error"]["message"] == "cannot range:\nnot today"
    made = executed()
    assert len(made) == len(set(made))
    sweep_command(["collect", "--out", "out"])
    collected = capsys.readouterr().out
    assert "failed: tiny-linear-uniform" in collected
    table = (tmp_path / "out" / "sweeps" / "trial" / "table.md").read_text()
    assert (table.count("| ptq "), table.count("failed: tiny-ptq-")) == (1, 1)  # one was cancelled
    sweep_command(["logs", found["linear-uniformlinear"]["cell"], "--out", "out"])
    assert "ArithmeticError: cannot range" in capsys.readouterr().out
    with pytest.raises(UserError, match="logs nothing-like-it: no job"):
        sweep_command(["logs", "nothing-like-it", "--out", "out"])

    shutil.copy(own_conf / "model" / "tiny.yaml", yaml)
    alone = tmp_path / "alone"
    assert qdexp("-m", path, "method=fp,ptq", f"out={alone}")[0] == 0
    for name, record in records(alone).items():
        for part in ("metrics", "keys", "curves", "reconstruction"):
            assert record.get(part) == found[name].get(part), part
    assert shards(alone).items() <= shards(tmp_path / "out").items()


@pytest.mark.slow
def test_an_edit_of_the_package_while_jobs_wait_changes_nothing(
    lab: Lab, down: Callable[[], None], small: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a `git checkout` does it to a checkout that is installed in place. 40 s."""
    checkout = tmp_path / "checkout"
    shutil.copytree(SOURCE, checkout / "src", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copytree(SOURCE.parent / "conf", checkout / "conf")
    monkeypatch.setenv("PYTHONPATH", str(checkout / "src"))
    command = [sys.executable, "-m", "qdexp", "-m", *small, "method=fp", "hydra/launcher=slurm", "cluster.parts=2"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    for path in (checkout / "src" / "qdexp").rglob("*.py"):
        path.write_text("raise ImportError('edited while jobs wait')")
    down()
    lab.drained(240)
    (record,) = records(tmp_path / "out").values()
    assert record["status"] == "complete"
    (entry,) = manifest.read(tmp_path / "out", "trial").cells.values()
    assert record["keys"] == entry.keys
    sweep_command(["collect", "--out", str(tmp_path / "out")])


def test_a_device_that_the_machines_lack(lab: Lab, down: Callable[[], None], qdexp: Command) -> None:
    code, _, err = qdexp("-m", "method=fp,ptq", "hydra/launcher=slurm", "cluster.device=cpu", "device=cuda")
    assert code == 1
    assert err == "qdexp: device=cuda: the cluster has none (cluster.device); set device=cpu, or auto"


def test_jobs_on_another_kind_of_device_refuse(lab: Lab, qdexp: Command, tmp_path: Path) -> None:
    """Planned for GPUs on a machine without; the jobs find none, and say so in the record."""
    code, _, err = qdexp("-m", "method=fp", "hydra/launcher=slurm", "cluster.device=cuda", "device=auto")
    assert (code, err) == (0, "")
    lab.drained()
    (record,) = (json.loads(path.read_text()) for path in (tmp_path / "out" / "records").iterdir())
    assert record["status"] == "failed"
    assert "the kind of device are not those of the shell that submitted" in record["error"]["message"]


@pytest.mark.slow
def test_hydras_own_launcher(lab: Lab, qdexp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """submitit_slurm goes on working: it holds the shell until all cells are there."""
    monkeypatch.setattr(SlurmJob, "watcher", SlurmInfoWatcher(delay_s=1))  # 600 s by itself
    options = ("hydra.launcher.timeout_min=60", f"hydra.launcher.submitit_folder={tmp_path}/logs")
    code, out, err = qdexp("-m", "method=fp", "hydra/launcher=submitit_slurm", *options)
    assert (code, err) == (0, "")
    assert [record["status"] for record in records(tmp_path / "out").values()] == ["complete"]
    assert "record " in out


@pytest.mark.slow
def test_three_thousand_cells(roomy: Lab, small: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Prints what they cost the submitting shell, imports among it, and the scheduler. Minutes."""
    roomy.run("scontrol", "update", "partitionname=main", "state=down")
    out = ["--out", str(tmp_path / "out")]
    before, start, controller = roomy.calls(), time.monotonic(), roomy.controller_seconds()
    with (tmp_path / "log").open("w") as log:
        command = [sys.executable, "-m", "qdexp", "-m", *small, "seed=range(0,750)", "hydra/launcher=slurm"]
        shell = subprocess.Popen(command, cwd=tmp_path, stdout=log, stderr=log)
        _, status, spent = os.wait4(shell.pid, 0)
    costs = {
        "shell, s": time.monotonic() - start,
        "shell, s of CPU": spent.ru_utime + spent.ru_stime,
        "shell, MiB at most": spent.ru_maxrss / 1024,
        "slurmctld, s of CPU": roomy.controller_seconds() - controller,
    }
    calls = {name: count - before.get(name, 0) for name, count in roomy.calls().items() if count > before.get(name, 0)}
    told = (tmp_path / "log").read_text()
    assert status == 0, told
    queued = roomy.output("squeue", "-h", "-r", "-o", "%F").splitlines()
    assert "3001 cells" in told
    assert f"submitted {len(queued)} jobs" in told
    assert len(queued) == 14_253
    assert calls["REQUEST_SUBMIT_BATCH_JOB"] == len(set(queued)) < 30
    with capsys.disabled():
        print(
            *(f"\n{name}: {cost:,.1f}" for name, cost in costs.items()), f"\n{len(queued):,} jobs; slurmctld was asked {calls}"
        )
    start = time.monotonic()
    sweep_command(["status", *out])
    sweep_command(["cancel", *out])
    with capsys.disabled():
        print(f"status and cancel, s: {time.monotonic() - start:,.1f}")
    roomy.drained()
