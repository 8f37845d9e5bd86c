"""The examples of the README run as they are shown."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

README = Path(__file__).parents[1] / "README.md"


LOAD = """
import sys, qdexp
from qdexp.errors import UserError
try:
    qdexp.load(sys.argv[1])
except UserError as error:
    assert "mine.TinyNet" in str(error) and "mine" not in sys.modules
print(type(qdexp.load(sys.argv[1], trust=["mine.TinyNet"])).__name__)
"""


def example() -> dict[str, str]:
    """File name -> content of the section Extending."""
    section = README.read_text().split("## Extending")[1].split("\n## ")[0]
    return dict(re.findall(r"`(mine/\S+)`\n\n```\w+\n(.*?)```", section, flags=re.DOTALL))


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    for name, content in example().items():
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


def test_the_example_of_own_model_estimator_and_strategy(checkout: Path) -> None:
    section = README.read_text().split("## Extending")[1]
    script = re.search(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    assert script is not None
    small = " protocol.n=16 sampling.batch=8 protocol.heldout=8 protocol.steps=4 trajectory.samples=80 tracker=none"
    commands = script[1].replace("python ", f"{sys.executable} ").replace("calib=ends", "calib=ends" + small)
    done = subprocess.run(["bash", "-ec", commands], cwd=checkout, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (record,) = (checkout / "outputs" / "records").glob("mine-percentile-ends-w4a8-*.json")
    assert '"status": "complete"' in record.read_text()
    (saved,) = (checkout / "outputs" / "store").glob("quantization-*/checkpoint")
    check = [sys.executable, "-c", LOAD, str(saved)]
    done = subprocess.run(check, cwd=checkout, env={**os.environ, "PYTHONPATH": "mine"}, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, "TinyNet\n"), done.stderr
