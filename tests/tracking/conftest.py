import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from qdexp import files
from qdexp.layout import MANIFEST


@pytest.fixture
def entry() -> Callable[[Path, dict[str, bytes]], list[Path]]:
    """``entry(folder, content)``: an entry of a store with these files; returns their paths."""

    def made(folder: Path, content: dict[str, bytes]) -> list[Path]:
        for name, data in content.items():
            (folder / name).parent.mkdir(parents=True, exist_ok=True)
            (folder / name).write_bytes(data)
        digests = {name: hashlib.sha256(data).hexdigest() for name, data in content.items()}
        files.write_sealed(folder / MANIFEST, {"costs": {}, "note": {}, "files": digests})
        return [folder / name for name in content]

    return made


@pytest.fixture
def record() -> dict[str, Any]:
    """The record of a complete cell, every part filled."""
    axes = {"model": "net", "method": "ptq", "quant": "w4a8", "calib": "last", "weight_bits": 4, "protocol": "quick", "seed": 0}
    protocol = {"hash": "abc", "name": "quick", "n": 1024, "steps": 3, "extractor": "cnn", "floor": {"fid": 1.25, "n": 1024}}
    config = {"model": {"name": "net", "shape": [1, 28, 28]}, "quant": {"weight_bits": 4, "layers": {}}, "seed": 0}
    steps = {"smooth": None, "rotate": {"_target_": "methods.Rotate"}, "act": {"_target_": "methods.Observe", "rows": 64}}
    config["quantizer"] = {"steps": steps}
    return {
        "format": 2,
        "cell": "net-ptq-w4a8-1a2b3c4d5e",
        "status": "complete",
        "axes": axes,
        "config": config,
        "identity": "e" * 16,
        "files": {"weights": {"path": "net.safetensors", "sha256": "f" * 64}},
        "keys": {"calibration": "c" * 16, "act": "d" * 16},
        "protocol": protocol,
        "metrics": {"fid": 12.5, "isc": 7.0, "kid": 0.01, "distance": 0.02, "size_nominal_mb": 0.5, "size_stored_mb": 0.625},
        "curves": {"timestep": [999, 500, 0], "teacher_forced": [0.5, 0.25, 0.125], "free_running": [0.5, 0.75, 1.0]},
        "costs": {"samples": {"seconds": 2.0, "peak_memory_mb": 900.0}, "total": {"seconds": 3.5, "peak_memory_mb": 900.0}},
        "provenance": {"host": "node7", "versions": {"torch": "2.14"}, "seeds": {"noise": 1}},
        "artifacts": {"checkpoint": "store/quantization-dddddddddddddddd/checkpoint"},
    }


@pytest.fixture
def failed(record: dict[str, Any]) -> dict[str, Any]:
    """The same cell, failed while it was quantized."""
    kept = {name: record[name] for name in ("format", "axes", "config", "identity", "files", "keys", "protocol", "provenance")}
    error = {"stage": "act", "type": "ValueError", "message": "no rows"}
    return {**kept, "cell": "net-ptq-w4a8-failed0000", "status": "failed", "error": error}
