from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from study import Study

from qdexp.report.sources import open_source

Record = dict[str, Any]

PROTOCOL = {
    "hash": "feedbeef01",
    "name": "quick",
    "n": 1024,
    "steps": 10,
    "scheduler": {"_target_": "diffusers.DPMSolverMultistepScheduler", "solver_order": 2, "source": None},
    "extractor": "fashion-cnn",
    "extractor_digest": "0123456789abcdef",
    "floor": {"fid": 1.234, "n": 1024},
}


@pytest.fixture
def make() -> Callable[..., Record]:
    """A complete record; keyword arguments change axes, ``metrics`` and ``protocol`` are merged, others replace."""

    def record(method: str, metrics: Record | None = None, protocol: Record | None = None, **changes: Any) -> Record:
        axes: Record = {"model": "net", "method": method, "quant": "w4a8", "quantizer": "linear", "calib": "last"}
        axes |= {"weight_bits": 4, "act_bits": 8, "protocol": "quick", "seed": 0}
        axes |= {name: changes.pop(name) for name in list(changes) if name in axes}
        numbers = {
            "fid": 12.3456,
            "isc": 7.1049,
            "kid": 0.0123449,
            "kid_std": 0.00056,
            "distance": 0.0123456,
            "noise_error": 0.00061864,
        }
        sizes = {"size_nominal_mb": 0.6449, "size_stored_mb": 0.7051}
        return {
            "format": 1,
            "cell": f"net-{method}-{axes['quant']}-{axes['seed']}",
            "status": "complete",
            "axes": axes,
            "protocol": {**PROTOCOL, **(protocol or {})},
            "metrics": {**numbers, **sizes, **(metrics or {})},
            "costs": {"total": {"seconds": 12.04}},
            **changes,
        }

    return record


@pytest.fixture
def failed(make: Callable[..., Record]) -> Record:
    record = make("reconstruction")
    error = {"stage": "quantization", "type": "ValueError", "message": "no [rows] left | at all\nTraceback ..."}
    return {**record, "status": "failed", "metrics": {}, "costs": {}, "error": error}


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture
def study(qdexp: Callable[..., tuple[int, str, str]], report_folder: Path) -> Study:
    """Three rungs of the tiny model, two seeds and full precision, the last rung with one layer untouched. Run once."""
    out = report_folder / "out"
    if not (out / "sweeps" / "study" / "table.md").exists():
        axes = ("method=fp,ptq,timestep_aware,qdiffusion", "seed=0,1", "inspection.rows=4")
        untouched = "quant.layers={conv_out: {weight_bits: 32, act_bits: 32}}"
        code, _, err = qdexp("-m", *axes, untouched, f"out={out}", "sweep=study")
        assert code == 0, err
    return Study("study", out, open_source(["study"], out).records)
