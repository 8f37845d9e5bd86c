import json
import os
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from browser import Browser, browser, missing
from safetensors.torch import load_file, save_file
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


@pytest.fixture(scope="session")
def make() -> Callable[..., Record]:
    """``make(method, metrics, protocol, ...)``: a complete record.

    Axes by their names, ``config`` (options), ``weights``: what the weights file holds, and ``path``: where it lies. As of a
    real cell, the identity follows from all that but the seed and the path. Other names replace parts of the record.
    """

    def record(method: str, metrics: Record | None = None, protocol: Record | None = None, **changes: Any) -> Record:
        full = method == "fp"
        axes: Record = {"model": "net", "method": method, "quant": "full" if full else "w4a8"}
        axes |= {"quantizer": "none" if full else "linear", "calib": "none" if full else "last"}
        axes |= {"weight_bits": 32 if full else 4, "act_bits": 32 if full else 8, "protocol": "quick", "seed": 0}
        axes |= {name: changes.pop(name) for name in list(changes) if name in axes}
        weights, path, options = changes.pop("weights", "w"), changes.pop("path", "net.safetensors"), changes.pop("config", {})
        told = {name: value for name, value in axes.items() if name != "seed"}
        identity = sha256(json.dumps([told, weights, options], sort_keys=True).encode()).hexdigest()
        network = f"network-{axes['model']}-{weights}"
        cell = f"{axes['model']}-{method}-{axes['quant']}-{identity[:8]}{axes['seed']}"
        numbers = {
            "fid": 12.3456,
            "isc": 7.1049,
            "kid": 0.0123449,
            "distance": 0.0123456,
            "noise_error": 0.00061864,
        }
        sizes = {"size_nominal_mb": 0.6449, "size_stored_mb": 0.7051}
        return {
            "format": 2,
            "cell": cell,
            "status": "complete",
            "axes": axes,
            "config": {
                "model": {"weights": path},
                "quant": {"bits": axes["weight_bits"]},
                "seed": axes["seed"],
                **options,
            },
            "identity": identity,
            "keys": {"samples": network} if full else {"full_precision": network, "samples": f"samples-{cell}"},
            "files": {"weights": {"path": path, "sha256": sha256(weights.encode()).hexdigest()}},
            "protocol": {**PROTOCOL, **(protocol or {})},
            "metrics": {**numbers, **sizes, **(metrics or {})},
            "costs": {"total": {"seconds": 12.04}},
            **changes,
        }

    return record


@pytest.fixture
def failed(make: Callable[..., Record]) -> Record:
    record = make("reconstruction")
    error = {"stage": "act", "type": "ValueError", "message": "no [rows] left | at all\nTraceback ..."}
    return {**record, "status": "failed", "metrics": {}, "costs": {}, "error": error}


@pytest.fixture(scope="session")
def tab(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Browser]:
    """One browser for all tests of the page. Where ``REQUIRE_CHROMIUM`` is set, as in CI, its absence is a failure."""
    if reason := missing():
        (pytest.fail if os.environ.get("REQUIRE_CHROMIUM") else pytest.skip)(f"the page is not looked at: {reason}")
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(scope="session")
def report_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("report")


@pytest.fixture
def study(qdexp: Callable[..., tuple[int, str, str]], report_folder: Path) -> Study:
    """Three methods of the tiny model, two seeds and full precision, the last with one layer untouched. Run once."""
    out = report_folder / "out"
    if not (out / "sweeps" / "study" / "table.md").exists():
        axes = ("method=fp,ptq,timestep_aware,qdiffusion", "seed=0,1", "inspection.rows=4")
        untouched = "quant.layers={conv_out: {weight_bits: 32, act_bits: 32}}"
        code, _, err = qdexp("-m", *axes, untouched, f"out={out}", "sweep=study")
        assert code == 0, err
    return Study("study", out, open_source(["study"], out).records)


@pytest.fixture
def two_weights(qdexp: Callable[..., tuple[int, str, str]], own_conf: Path, report_folder: Path) -> Study:
    """One command run twice, seed 0 and seed 1, with the content of the weights file exchanged in between. Run once."""
    out, weights = report_folder / "exchanged", report_folder / "weights.safetensors"
    if not (out / "sweeps" / "study" / "table.md").exists():
        tensors = load_file(own_conf / "tiny.safetensors")
        for seed, factor in ((0, 1.0), (1, 1.5)):
            save_file({name: factor * tensor for name, tensor in tensors.items()}, weights)
            options = (f"model.weights={weights}", "method=fp,ptq", f"seed={seed}", f"out={out}", "sweep=study")
            code, _, err = qdexp("-m", *options)
            assert code == 0, err
    return Study("study", out, open_source(["study"], out).records)
