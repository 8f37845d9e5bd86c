"""The page of a model of one's own: its commands run as they are typed, in an empty folder, without a network, in seconds."""

import json
import os
import re
import resource
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from processes import script

pytestmark = pytest.mark.slow  # 30 s and 45 s

PAGE = (Path(__file__).parents[1] / "docs" / "own-model.md").read_text()
FILES = dict(re.findall(r"`(\w+\.py)`\n\n```python\n(.*?)```", PAGE, flags=re.DOTALL))
FIRST, ABLATION, FEATURES = re.findall(r"```bash\n(.*?)```", PAGE, flags=re.DOTALL)
NO_NETWORK = {f"{scheme}_proxy": "http://127.0.0.1:9" for scheme in ("http", "https")}


def typed(folder: Path, commands: str) -> float:
    """CPU seconds of the commands, and of all processes that they start."""
    path = os.pathsep.join([str(Path(sys.executable).parent), os.environ["PATH"]])
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        ["bash", "-ec", commands], cwd=folder, env={**os.environ, **NO_NETWORK, "PATH": path}, capture_output=True, text=True
    )
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    assert done.returncode == 0, done.stderr
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("mine")
    for name, content in FILES.items():
        (made / name).write_text(content)
    return made


@pytest.fixture(scope="module")
def first(folder: Path) -> float:
    """CPU seconds of the commands that come first."""
    return typed(folder, FIRST)


def records(folder: Path) -> list[dict[str, Any]]:
    return [json.loads(path.read_text()) for path in sorted((folder / "outputs" / "records").glob("*.json"))]


def test_first_numbers_take_seconds(folder: Path, first: float) -> None:
    print(f"{first:.0f} CPU seconds")
    (record,) = records(folder)
    assert record["status"] == "complete" and record["axes"]["protocol"] == "smoke"
    assert {"psnr", "ssim", "noise_error"} <= record["metrics"].keys()
    assert first < 60


@pytest.mark.usefixtures("first")
def test_the_rest_of_the_page(folder: Path) -> None:
    """The ablation, its report, and FID by features of one's own."""
    generator = np.random.default_rng(0)
    (folder / "images").mkdir()
    for number in range(40):
        Image.fromarray(generator.integers(0, 256, (16, 16, 3), dtype=np.uint8)).save(folder / "images" / f"{number}.png")
    script(ABLATION + FEATURES, folder, NO_NETWORK)
    assert len(records(folder)) == 6
    assert (folder / "outputs" / "reports" / "first" / "index.html").is_file()
    (scored,) = [one for one in records(folder) if "fid" in one["metrics"]]
    assert scored["protocol"]["extractor"] == "features.Features"
