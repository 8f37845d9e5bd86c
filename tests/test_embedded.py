"""What the README says of the embedded model, on fewer images."""

import json
import subprocess
import sys
from pathlib import Path

import pytest


@pytest.mark.slow
def test_the_ladder_on_the_embedded_model(tmp_path: Path) -> None:
    command = [sys.executable, "-m", "qdexp", "-m", "protocol.n=256", "tracker=none"]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    records = [json.loads(path.read_text()) for path in (tmp_path / "outputs" / "records").iterdir()]
    metrics = {record["axes"]["method"]: record["metrics"] for record in records}
    assert metrics["fp"]["fid"] < metrics["timestep_aware"]["fid"] < metrics["ptq"]["fid"]
    assert metrics["timestep_aware"]["noise_error"] < metrics["ptq"]["noise_error"] / 10
    assert metrics["timestep_aware"]["distance"] < metrics["ptq"]["distance"] / 3
    for method in ("ptq", "timestep_aware"):
        nominal, stored = metrics[method]["size_nominal_mb"], metrics[method]["size_stored_mb"]
        assert nominal < stored < 1.2 * nominal
