"""The source archive and the wheel, built and installed into an environment of their own: what users get without a checkout."""

import json
import os
import subprocess
import tarfile
import venv
import zipfile
from pathlib import Path

import pytest
import torch

pytestmark = pytest.mark.slow  # two minutes; hatchling and build come from the network

TOP = Path(__file__).parents[1]


def output(*command: str, cwd: Path) -> str:
    """What a command prints that ends well."""
    clean = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "PYTHONSAFEPATH")}
    done = subprocess.run(command, cwd=cwd, env={**clean, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An environment that has qdexp's wheel, made from its source archive, and borrows the dependencies of this one."""
    made = tmp_path_factory.mktemp("installed")
    venv.create(made / "venv", with_pip=True)
    python = str(made / "venv" / "bin" / "python")
    output(python, "-m", "pip", "install", "--quiet", "hatchling", "build", cwd=made)
    output(python, "-m", "build", "--no-isolation", "--outdir", str(made / "dist"), str(TOP), cwd=made)
    (wheel,) = (made / "dist").glob("*.whl")
    output(python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel), cwd=made)
    output(python, "-m", "pip", "uninstall", "--quiet", "--yes", "setuptools", cwd=made)  # older than the one that is borrowed
    (site,) = (made / "venv" / "lib").glob("python*/site-packages")
    (site / "borrowed.pth").write_text(f"{Path(torch.__file__).parents[1]}\n")  # whose own .pth files are not read
    return made


def tracked(*folders: str) -> set[str]:
    return set(output("git", "ls-files", *folders, cwd=TOP).splitlines())


def test_the_archives_hold_all_and_nothing_else(folder: Path) -> None:
    """Configs, embedded weights, prompts and the page among it."""
    (archive,) = (folder / "dist").glob("*.tar.gz")
    with tarfile.open(archive) as files:
        names = {name.partition("/")[2] for name in files.getnames()}
    assert tracked() - names == set()
    (wheel,) = (folder / "dist").glob("*.whl")
    with zipfile.ZipFile(wheel) as files:
        names = {name for name in files.namelist() if ".dist-info/" not in name}
    assert names == {name.removeprefix("src/") for name in tracked("src")} | {f"qdexp/{name}" for name in tracked("conf")}


def test_the_requirements_fit_together(folder: Path) -> None:
    python = str(folder / "venv" / "bin" / "python")
    assert "No broken requirements found" in output(python, "-m", "pip", "check", cwd=folder)


def test_the_commands_run_outside_of_a_checkout(folder: Path) -> None:
    command = str(folder / "venv" / "bin" / "qdexp")
    assert output(command, "--version", cwd=folder).startswith("qdexp ")
    assert "processor" in output(command, "doctor", cwd=folder)
    assert "run " in output(command, "--help", cwd=folder)
    output(command, "run", "method=qdiffusion", "scale=smoke", cwd=folder)
    (path,) = (folder / "outputs" / "records").iterdir()
    record = json.loads(path.read_text())
    assert record["status"] == "complete" and record["provenance"]["git_commit"] is None
    assert "/index.html\n" in output(command, "report", "--no-figures", cwd=folder)
    loaded = "import qdexp, sys; print(qdexp.__file__, type(qdexp.load(sys.argv[1])).__name__)"
    told = output(str(folder / "venv" / "bin" / "python"), "-c", loaded, str(path), cwd=folder)
    assert told.startswith(str(folder / "venv")) and told.endswith("UNet2DModel\n")
