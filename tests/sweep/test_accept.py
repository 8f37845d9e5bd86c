"""After a refactoring nothing is computed again; after a change of results everything that it reaches is."""

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from subprocess import CompletedProcess

import pytest
from processes import Python

import qdexp as package
from qdexp import files
from qdexp.cell import Cell
from qdexp.store.__main__ import main as store_command
from qdexp.sweep.__main__ import main as sweep_command
from qdexp.sweep.launch import Frozen
from qdexp.sweep.manifest import read as read_sweep
from qdexp.sweep.status import DONE, Status

CellOf = Callable[..., Cell]
OPTIONS = ("method=timestep_aware", "protocol.n=10", "protocol.heldout=2", "protocol.steps=2", "calib.timesteps=2")
WIDTH = "        scale = scales.rounded((hi - lo) / (scheme.qmax - scheme.qmin), scheme.scale)\n"
REFACTORED = ("quant/affine.py", WIDTH, "        width = hi - lo\n" + WIDTH.replace("(hi - lo)", "width"))
LEARNING = ("nn.Parameter(torch.logit(", "nn.Parameter(-torch.logit(")
CHANGED = ("quant/affine.py", WIDTH, WIDTH.replace("scheme.qmin)", "scheme.qmin + 0.5)"))


@pytest.fixture
def edited(tmp_path: Path) -> Callable[..., dict[str, str]]:
    """``edited(file, old, new)``: the environment of processes that run qdexp with this edit."""

    def environment(file: str, old: str, new: str) -> dict[str, str]:
        copy = tmp_path / f"edited-{len(list(tmp_path.glob('edited-*')))}"
        shutil.copytree(Path(package.__file__).parent, copy / "src" / "qdexp", ignore=shutil.ignore_patterns("__pycache__"))
        shutil.copytree(Path(package.__file__).parents[1] / "hydra_plugins", copy / "src" / "hydra_plugins")
        shutil.copytree(Path(package.__file__).parents[2] / "conf", copy / "conf")
        path = copy / "src" / "qdexp" / file
        assert old in path.read_text()
        path.write_text(path.read_text().replace(old, new))
        return {**os.environ, "PYTHONPATH": str(copy / "src"), "OMP_NUM_THREADS": "1"}

    return environment


def run(environment: dict[str, str], *arguments: str) -> CompletedProcess[str]:
    return Python(["-m", *arguments], Path.cwd(), environment).wait()


def test_a_refactoring_gives_finished_results_new_keys(
    cell_of: CellOf,
    edited: Callable[..., dict[str, str]],
    small: list[str],
    executed: Callable[..., list[str]],
    capsys: pytest.CaptureFixture[str],
) -> None:
    cell = cell_of(*OPTIONS)
    Frozen([cell]).write()
    record = cell.run()
    measured = ("metric=[standard,latency]", "metric.latency.repetitions=5", "metric.memory=null")
    assert "latency" in cell_of(*OPTIONS, *measured).run()["keys"]
    assert store_command(["accept", "--out", str(cell.out)]) == 0
    assert capsys.readouterr().out.endswith("nothing to accept: all 1 cells have the keys of this code\n")
    before, entries = executed(), {path.name for path in (cell.out / "store").iterdir()}
    environment = edited(*REFACTORED)
    done = run(environment, "qdexp.store", "accept", "--out", str(cell.out))
    assert done.returncode == 0, done.stderr
    assert "1 of 1 cells have new keys" in done.stdout
    made_again = {line.split()[0] for line in done.stdout.splitlines() if line.endswith("bit-equal")}
    assert made_again == {"weights", "act", "coverage", "curves", "samples", "sizes"}, "what the edit reaches, and no more"
    (path,) = (cell.out / "records").glob("*.json")
    accepted = json.loads(path.read_text())
    assert accepted["cell"] == path.stem != record["cell"]
    assert accepted["metrics"] == record["metrics"]
    same = {role for role, key in accepted["keys"].items() if key == record["keys"][role]}
    assert same == {"trajectory", "calibration", "heldout", "full_precision"}
    assert accepted["stages"]["samples"]["accepted"] == [record["keys"]["samples"]]
    assert accepted["stages"]["samples"]["key"] == accepted["keys"]["samples"]
    manifest = json.loads((cell.out / "store" / f"samples-{accepted['keys']['samples']}" / "manifest.json").read_text())
    assert manifest["note"]["accepted"] == [record["keys"]["samples"]]
    assert (cell.out / accepted["artifacts"]["checkpoint"]).is_dir()
    assert accepted["identity"].startswith(path.stem.rpartition("-")[2]), (
        "its other seeds, made by the code of now, have the same"
    )

    merged = [one for one in small if one.partition("=")[0] not in {option.partition("=")[0] for option in OPTIONS}]
    again = run(environment, "qdexp", *merged, *OPTIONS, f"out={cell.out}")
    assert again.returncode == 0, again.stderr
    assert executed() == before
    assert store_command(["prune", "--yes", "--out", str(cell.out)]) == 0
    kept = {path.name for path in (cell.out / "store").iterdir()} - {".locks"}
    assert len(kept) == len(cell.stages)
    assert store_command(["verify", "--out", str(cell.out)]) == 0
    assert entries & kept

    sweep = read_sweep(cell.out, "trial")
    assert {one.name for one in sweep.cells.values()} == {path.stem}
    assert {state.state for state in Status(sweep, lambda _: {}).nodes.values()} == {DONE}
    sweep_command(["collect", "trial", "--out", str(cell.out)])
    assert list((cell.out / "records").glob("*.json")) == [path], "no record of failure under the name of before"


def test_a_change_of_results_is_not_accepted(finished: CellOf, edited: Callable[..., dict[str, str]]) -> None:
    cell = finished(*OPTIONS)
    before = {path: files.sha256(path) for path in cell.out.rglob("*") if path.is_file()}
    done = run(edited(*CHANGED), "qdexp.store", "accept", "--out", str(cell.out))
    assert done.returncode == 1
    assert "weights       1 of 1 made again" in done.stdout
    assert "differs in checkpoint/checkpoint.json, checkpoint/checkpoint.safetensors: not accepted" in done.stdout
    assert "0 of 1 cells have new keys" in done.stdout
    assert {path: files.sha256(path) for path in cell.out.rglob("*") if path.is_file()} == before


def test_nothing_is_accepted_where_more_than_the_code_differs(
    finished: CellOf, own_conf: Path, edited: Callable[..., dict[str, str]]
) -> None:
    cell = finished(*OPTIONS)
    weights = own_conf / "tiny.safetensors"
    kept = weights.read_bytes()
    try:
        weights.write_bytes(kept[:-4] + b"\0\0\0\0")
        done = run(edited(*REFACTORED), "qdexp.store", "accept", "--out", str(cell.out))
    finally:
        weights.write_bytes(kept)
    assert done.returncode == 1
    assert "not only the code of trajectory has changed, but options, files or versions" in done.stdout
    assert "nothing can be accepted" in done.stderr


@pytest.mark.slow
def test_what_one_method_makes_says_nothing_of_another(cell_of: CellOf, edited: Callable[..., dict[str, str]]) -> None:
    """GPTQ is cheaper than AdaRound, and does not see that AdaRound's learning has changed."""
    gptq, adaround = (cell_of(*OPTIONS[1:], which) for which in ("quantizer=gptq", "method=reconstruction"))
    for cell in (gptq, adaround):
        cell.run()
    done = run(edited("quant/adaround.py", *LEARNING), "qdexp.store", "accept", "--out", str(gptq.out))
    assert done.returncode == 1, done.stderr
    rounding = [line for line in done.stdout.splitlines() if line.startswith("weights")]
    assert sorted("bit-equal" in line for line in rounding) == [False, True], done.stdout
    assert "1 of 2 cells have new keys" in done.stdout
    assert adaround.record.exists() and not gptq.record.exists()
