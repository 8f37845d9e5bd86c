"""What the README tells a reader to type. The demo itself takes minutes; all of it is run here with fewer images."""

import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from diffusers import DDPMScheduler, UNet2DModel
from processes import Python

TOP = Path(__file__).parents[1]
README = (TOP / "README.md").read_text()
BLOCKS = re.findall(r"^```bash\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE)
INDENTED = re.findall(r"^ {4}((?:make|python|qdexp) [^#\n]*)", README, flags=re.MULTILINE)
INLINE = re.findall(r"`((?:PIP_EXTRA_INDEX_URL=\S+ )?(?:make|python -m|qdexp) [^`]*)`", README)
COMMANDS = {one.strip().replace(" ...", "") for one in (*INDENTED, *INLINE)}
MAKE = sorted(one for one in COMMANDS if "make " in one)
SWEEPS = sorted(one for one in COMMANDS if one.startswith("python -m qdexp -m "))
ONE_THREAD = {"OMP_NUM_THREADS": "1"}
OTHERS = sorted(COMMANDS - {*MAKE, *SWEEPS})


def test_it_is_short() -> None:
    assert README.count("\n") <= 200


@pytest.mark.parametrize("command", MAKE)
def test_make_knows_its_targets(command: str, tmp_path: Path) -> None:
    words = [word for word in shlex.split(command) if not word.startswith("PIP_")]
    done = subprocess.run([*words, "--dry-run", f"VENV={tmp_path}"], cwd=TOP, capture_output=True, text=True)
    assert (done.returncode, done.stderr) == (0, "")
    assert f"{tmp_path}/" in done.stdout


@pytest.mark.parametrize("command", OTHERS)
def test_its_other_commands_are_there(command: str, tmp_path: Path) -> None:
    """Those with a cell or a sweep of the reader's own tell of themselves."""
    words = shlex.split(command)
    arguments = words[1:] if words[0] == "python" else ["-m", "qdexp.cli", *words[1:]]
    if words[-1] not in ("--help", "doctor"):
        arguments.append("--help")
    done = Python(arguments, tmp_path).wait()
    assert done.returncode == 0, done.stderr
    assert done.stdout


@pytest.mark.parametrize("command", SWEEPS)
def test_its_sweeps_can_be_planned(command: str, tmp_path: Path, tiny_unet: UNet2DModel) -> None:
    for part in (tiny_unet, DDPMScheduler()):
        part.save_pretrained(tmp_path / "DIR")
    done = Python([*shlex.split(command)[1:], "hydra.launcher.dry=true"], tmp_path).wait()
    assert done.returncode == 0, done.stderr
    assert "\ncost     " in done.stdout


def test_the_method_of_ones_own(
    qdexp: Callable[..., tuple[int, str, str]], own_conf: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Fifteen lines, without imports, that clip weights; another value of its option computes none of the steps before."""
    monkeypatch.chdir(tmp_path)
    files = dict(re.findall(r"^`(mine/\S+)`\n\n```\w+\n(.*?)^```", README, flags=re.DOTALL | re.MULTILINE))
    for name, content in files.items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    code = [line for line in files["mine/clip.py"].splitlines() if line and "import" not in line]
    assert len(code) <= 15
    export, command = BLOCKS[0].splitlines()
    monkeypatch.syspath_prepend(tmp_path / export.partition("=")[2])
    monkeypatch.delitem(sys.modules, "clip", raising=False)
    path = f"hydra.searchpath=[file://{tmp_path}/mine/conf,file://{own_conf}]"
    arguments = [path if word.startswith("hydra.searchpath") else word for word in shlex.split(command)[3:]]
    status, out, err = qdexp(*arguments)
    assert (status, err) == (0, "")
    assert all(re.search(rf"^ *{method}-uniform +W4A8 ", out, re.MULTILINE) for method in ("search", "clipped"))
    status, out, err = qdexp("-m", path, "quantizer=clipped", "calib=uniform", "quantizer.steps.clip.sigmas=1")
    assert (status, err) == (0, "")
    records = [json.loads(one.read_text()) for one in (tmp_path / "out" / "records").glob("*clipped*.json")]
    assert {one["config"]["quantizer"]["steps"]["clip"].get("sigmas", 4.0) for one in records} == {1.0, 4.0}
    assert len({one["keys"]["calibration"] for one in records}) == 1
    assert len({one["metrics"]["noise_error"] for one in records}) == 2


@pytest.mark.slow
def test_the_demo(tmp_path: Path) -> None:
    """What `make demo` runs, with 16 images and few iterations: two minutes."""
    told = subprocess.run(["make", "--dry-run", "demo", f"VENV={tmp_path}"], cwd=TOP, capture_output=True, text=True).stdout
    sweep, report, last = [line for line in told.splitlines() if " qdexp" in line or line.startswith("echo")]
    printed = ""
    for line in (f"{sweep} scale=smoke", report):
        words = [sys.executable, *shlex.split(line)[1:]]
        done = subprocess.run(words, cwd=tmp_path, env=os.environ | ONE_THREAD, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        printed += done.stdout
    assert re.search(r"^cost .* of computing, .* in 2 processes, a guess by a batch", printed, re.MULTILINE)
    assert "2 of 5 cells so far\n" in printed
    page = last.rpartition("file://")[2].rstrip('"').replace(str(TOP), str(tmp_path))
    assert Path(page).exists() and page in printed
