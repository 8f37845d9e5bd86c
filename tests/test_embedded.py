"""What docs/results.md says of the embedded model, on fewer images."""

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

Metrics = dict[str, float]


def run(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "qdexp", "-m", "protocol.n=256", "inspection.rows=0", "tracker=none", *arguments]
    done = subprocess.run(command, cwd=folder, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.fixture(scope="module")
def records(tmp_path_factory: pytest.TempPathFactory) -> dict[tuple[str, str], dict[str, Any]]:
    """(method, bits) -> record: the ablation, and quantized activations alone."""
    folder = tmp_path_factory.mktemp("embedded")
    run(folder)
    run(folder, "method=timestep_aware", "quant=w32a8")
    found = [json.loads(path.read_text()) for path in (folder / "outputs" / "records").iterdir()]
    return {(record["axes"]["method"], record["axes"]["quant"]): record for record in found}


@pytest.fixture(scope="module")
def metrics(records: dict[tuple[str, str], dict[str, Any]]) -> dict[str, Metrics]:
    """The metrics of the ablation's methods."""
    return {method: record["metrics"] for (method, bits), record in records.items() if bits != "w32a8"}


@pytest.mark.slow
def test_the_ladder_climbs(metrics: dict[str, Metrics]) -> None:
    assert metrics["fp"]["fid"] < metrics["timestep_aware"]["fid"] < metrics["ptq"]["fid"]
    assert metrics["timestep_aware"]["noise_error"] < metrics["ptq"]["noise_error"] / 10
    assert metrics["timestep_aware"]["distance"] < metrics["ptq"]["distance"] / 3
    for method in ("reconstruction", "qdiffusion"):
        assert metrics[method]["noise_error"] < metrics["timestep_aware"]["noise_error"]
        assert metrics[method]["distance"] < metrics["timestep_aware"]["distance"]


@pytest.mark.slow
def test_sizes(metrics: dict[str, Metrics]) -> None:
    for method in metrics.keys() - {"fp"}:
        nominal, stored = metrics[method]["size_nominal_mb"], metrics[method]["size_stored_mb"]
        assert nominal < stored < 1.2 * nominal


@pytest.mark.slow
def test_learned_rounding_wins_back_most_of_what_rounding_costs(records: dict[tuple[str, str], dict[str, Any]]) -> None:
    nearest, alone, learned = (
        records[place]["metrics"]["noise_error"]
        for place in (("timestep_aware", "w4a8"), ("timestep_aware", "w32a8"), ("reconstruction", "w4a8"))
    )
    assert nearest - learned > 0.8 * (nearest - alone)
    blocks = records["reconstruction", "w4a8"]["reconstruction"]["weights"]
    assert all(blocks["kept"])
