"""Tries the oldest or the newest versions of the dependencies that pyproject.toml allows.

    python tests/versions.py oldest|newest FOLDER

Makes a virtual environment in FOLDER (GBs and minutes, torch is large; kept for another look), installs the wheel of this
checkout into it, the dependencies at their lower bounds or at the newest that there are, and runs there a cell of each embedded
model and the tests of ``TESTS``. Prints the versions. The exit status is that of the first command that fails.
"""

import argparse
import os
import subprocess
import sys
import tomllib
import venv
from pathlib import Path

from packaging.requirements import Requirement

TOP = Path(__file__).parents[1]
TESTS = (
    "tests/test_config.py",
    "tests/test_cell.py",
    "tests/test_text_cell.py",
    "tests/quant/test_network.py",
    "tests/statistics",
)
"""What shows whether the libraries fit: the config, whole cells, quantization, statistics, tables and the page."""
LOWER = (">=", "==", "~=")


def lower_bounds() -> list[str]:
    """A constraint of pip for each dependency of the package itself: its oldest version."""
    project = tomllib.loads((TOP / "pyproject.toml").read_text())["project"]
    found = []
    for requirement in map(Requirement, project["dependencies"]):
        oldest = [one.version for one in requirement.specifier if one.operator in LOWER]
        if not oldest:
            raise SystemExit(f"pyproject.toml: {requirement.name} has no lower bound")
        found.append(f"{requirement.name}=={oldest[0]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawTextHelpFormatter)
    parser.add_argument("which", choices=["oldest", "newest"])
    parser.add_argument("folder", type=Path)
    args = parser.parse_args()
    folder: Path = args.folder.resolve()
    pins = lower_bounds() if args.which == "oldest" else []
    if not (folder / "bin").exists():
        venv.create(folder, with_pip=True)
    python, constraints = str(folder / "bin" / "python"), folder / "constraints.txt"
    constraints.write_text("".join(f"{one}\n" for one in pins))
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}

    def run(*arguments: str, cwd: Path = folder) -> None:
        done = subprocess.run([python, "-m", *arguments], cwd=cwd, env=environment)
        if done.returncode:
            sys.exit(done.returncode)

    run("pip", "install", "--progress-bar=off", "--upgrade", "--constraint", str(constraints), str(TOP), "pytest>=8")
    run("pip", "check")
    run("pip", "list")
    for model, method in (("ddpm_fashion", "qdiffusion"), ("dit_fashion", "reconstruction")):
        run("qdexp", f"model={model}", f"method={method}", "scale=smoke", "sampling.batch=8", "out=outputs")
    run("qdexp.report")
    run("pytest", "-x", *TESTS, cwd=TOP)


if __name__ == "__main__":
    main()
