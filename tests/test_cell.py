import json
import math
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
import torch
from processes import Python
from safetensors import safe_open
from safetensors.torch import load_file

import qdexp as package
from qdexp import files
from qdexp.cell import Cell
from qdexp.models.describe import describe
from qdexp.protocol import protocol_of
from qdexp.record import FORMAT, read_complete

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]
Executed = Callable[..., list[str]]
Record = dict[str, Any]


def record_of(cell: Cell) -> Record:
    record = read_complete(cell.out, cell.name)
    assert record is not None
    return record


def images(folder: Path) -> torch.Tensor:
    """The images of a samples entry, uint8 [n, c, h, w]."""
    return torch.cat([load_file(path)["images"] for path in sorted(folder.glob("shard-*"))])


def digests(folder: Path) -> list[str]:
    return [files.sha256(path) for path in sorted(folder.glob("shard-*"))]


def test_record_holds_all_that_is_said_of_it(finished: CellOf) -> None:
    cell = finished()
    record = record_of(cell)
    assert cell.run() == record
    assert record["format"] == FORMAT == 2
    assert record["cell"] == cell.name == f"tiny-timestep_aware-w4a8-{cell.key[:10]}"
    assert record["status"] == "complete"
    assert record["axes"] == {
        "model": "tiny",
        "weights": "file",
        "method": "timestep_aware",
        "quant": "w4a8",
        "quantizer": "search",
        "calib": "uniform",
        "recon": "none",
        "backend": "simulated",
        "weight_bits": 4,
        "act_bits": 8,
        "protocol": "quick",
        "seed": 0,
    }
    assert record["config"] | {"out": str(cell.out)} == asdict(cell.config)
    assert record["identity"] == cell.identity
    assert record["files"] == {
        "weights": {"path": cell.config.model.weights, "sha256": files.sha256(Path(cell.config.model.weights))}
    }
    reference = cell.config.protocol.reference
    measures = record["measures"]
    assert list(measures) == [name for name, node in cell.config.metric.items() if node and name not in ("clip", "lpips")]
    assert measures["fid"]["files"] == {"reference": {"path": reference, "sha256": files.sha256(Path(reference))}}
    assert {key for told in measures.values() for key in told["numbers"]} == record["metrics"].keys()
    assert "${" not in json.dumps(record["config"])
    assert record["config"]["protocol"]["n"] == 20
    assert record["keys"] == {name: stage.key for name, stage in cell.stages.items()}
    assert all(len(key) == 16 and set(key) <= set("0123456789abcdef") for key in record["keys"].values())
    assert record["provenance"].keys() >= {"time", "git_commit", "git_dirty", "versions", "host", "machine", "seeds"}
    assert record["provenance"]["seeds"] == {"seed": 0, "noise_seed": 0}


def test_costs_of_every_stage(finished: CellOf) -> None:
    cell = finished()
    costs = record_of(cell)["costs"]
    assert list(costs) == [*cell.stages, "total"]
    stages = [costs[name] for name in cell.stages]
    assert costs["total"]["seconds"] == pytest.approx(sum(cost["seconds"] for cost in stages), abs=1e-3)
    assert costs["total"]["peak_memory_mb"] == max(cost["peak_memory_mb"] for cost in stages) > 0
    assert costs["samples"]["seconds"] > 0


def test_metrics_agree_with_what_is_in_the_store(finished: CellOf) -> None:
    cell = finished()
    record = record_of(cell)
    metrics, store = record["metrics"], cell.out / "store"
    drawn = images(cell.out / record["artifacts"]["samples"])
    truth = images(store / f"samples-{record['keys']['full_precision']}")
    assert drawn.shape == truth.shape == (20, 1, 28, 28)
    distance = ((drawn.double() - truth.double()) / 255).square().mean(dim=(1, 2, 3))
    assert metrics["distance"] == pytest.approx(distance.mean().item(), rel=1e-5)
    assert metrics["psnr"] == pytest.approx(-10 * distance.log10().mean().item(), rel=1e-5)
    checkpoint = cell.out / record["artifacts"]["checkpoint"]
    assert metrics["size_stored_mb"] == sum(path.stat().st_size for path in checkpoint.iterdir()) / 1e6
    with safe_open(cell.config.model.weights, "pt") as weights:
        parameters = sum(weights.get_tensor(name).numel() for name in weights.keys())  # noqa: SIM118 - no mapping
    assert metrics["size_nominal_mb"] == pytest.approx(parameters * 4 / 8 / 1e6)
    assert {"fid", "isc", "isc_std", "precision", "recall"} < metrics.keys()
    assert "kid" not in metrics  # 20 images are too few
    assert all(math.isfinite(value) for value in metrics.values())


def test_curves_have_a_value_for_every_step(cell_of: CellOf) -> None:
    record = cell_of("protocol.steps=5").run()
    curves = record["curves"]
    assert curves.keys() == {"timestep", "teacher_forced", "free_running"}
    assert {len(values) for values in curves.values()} == {5}
    assert curves["timestep"] == sorted(curves["timestep"], reverse=True)
    assert curves["free_running"][0] == 0  # both start from the same noise
    assert all(error > 0 for error in curves["teacher_forced"] + curves["free_running"][1:])
    assert record["metrics"]["noise_error"] == pytest.approx(sum(curves["teacher_forced"]) / 5)


def test_full_precision_record(cell_of: CellOf) -> None:
    cell = cell_of("method=fp")
    record = cell.run()
    scored = {"features_fashion-cnn", "fid", "kid", "isc", "precision_recall"}
    assert record["keys"].keys() == {"samples", "size", "distance", "sizes"} | scored
    assert record["artifacts"].keys() == {"samples"}
    assert "curves" not in record
    axes = {name: record["axes"][name] for name in ("method", "quant", "quantizer", "calib", "weight_bits", "act_bits")}
    assert axes == {
        "method": "fp",
        "quant": "full",
        "quantizer": "none",
        "calib": "none",
        "weight_bits": 32,
        "act_bits": 32,
    }
    assert record["metrics"]["distance"] == 0
    assert "psnr" not in record["metrics"]
    held = load_file(cell.config.model.weights).values()
    assert record["metrics"]["size_stored_mb"] == sum(value.nbytes for value in held) / 1e6
    assert record["metrics"]["gbops"] == 1024 * describe(cell.config.model).macs / 1e9
    assert "coverage" not in record and "coverage_macs" not in record["metrics"]


@pytest.mark.parametrize(
    ("option", "same"),
    [
        ("seed=1", True),
        ("calib=last", True),
        ("quant=w8a8", True),
        ("sampling.batch=4", True),
        ("protocol.n=24", False),
        ("protocol.steps=3", False),
        ("protocol.noise_seed=1", False),
        ("protocol.scheduler.solver_order=1", False),
    ],
)
def test_protocol_hash(cell_of: CellOf, option: str, same: bool) -> None:
    one, other = (protocol_of(cell_of(*options).config) for options in ((), (option,)))
    assert (one["hash"] == other["hash"]) is same


def test_second_run_executes_nothing(finished: CellOf, cell_of: CellOf, executed: Executed) -> None:
    finished()
    path = cell_of().out / "records" / f"{cell_of().name}.json"
    before, entries, modified = path.read_bytes(), executed(), path.stat().st_mtime_ns
    again = cell_of().run()
    assert len(entries) == len(cell_of().stages) == 19
    assert executed() == entries
    assert path.read_bytes() == before
    assert path.stat().st_mtime_ns == modified
    assert again == record_of(cell_of())


@pytest.mark.parametrize("damage", ["", "{", '{"format": 0, "status": "complete"}'])
def test_lost_record_is_made_again_from_the_store(
    finished: CellOf, cell_of: CellOf, executed: Executed, damage: str
) -> None:  # fmt: skip
    cell = finished()
    before, entries = record_of(cell), executed()
    path = cell.out / "records" / f"{cell.name}.json"
    path.unlink()
    if damage:
        path.write_text(damage)
    cell_of().run()
    after = record_of(cell)
    assert executed() == entries
    for record in (before, after):
        del record["provenance"]["time"]
        del record["config"]["out"]  # the run was another test's
    assert after == before


def test_changed_entry_is_made_again(cell_of: CellOf, executed: Executed, capsys: pytest.CaptureFixture[str]) -> None:
    cell = cell_of("method=fp")
    cell.run()
    folder = cell.out / record_of(cell)["artifacts"]["samples"]
    shard, kept = folder / "shard-00001.safetensors", digests(folder)
    raw = bytearray(shard.read_bytes())
    raw[-1] ^= 1
    shard.write_bytes(raw)
    cell_of("method=fp").run()
    assert executed()[len(cell.stages) :] == [folder.name]
    assert digests(folder) == kept
    assert f"{folder} is corrupt" in capsys.readouterr().out


def test_a_cells_images_depend_on_no_other_cell(finished: CellOf, cell_of: CellOf, tmp_path: Path) -> None:
    finished()
    second = cell_of("method=ptq")
    second.run()
    alone = cell_of("method=ptq", f"out={tmp_path / 'alone'}")
    alone.run()
    entries = [cell.out / record_of(cell)["artifacts"]["samples"] for cell in (second, alone)]
    assert entries[0] != entries[1]
    assert digests(entries[0]) == digests(entries[1])
    assert record_of(second)["metrics"] == record_of(alone)["metrics"]


RANGE = '''
import os
from dataclasses import dataclass
from qdexp.quant.ranges import NormSearch


@dataclass(frozen=True)
class Shaky(NormSearch):
    """The search, but for a machine in a bad state."""

    def start(self, scheme, groups):
        if os.environ.get("SHAKY") == "stop":
            raise KeyboardInterrupt
        if os.environ.get("SHAKY"):
            raise ArithmeticError("cannot range:\\nnot today")
        return super().start(scheme, groups)
'''


@pytest.fixture
def shaky(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """The option that names a range estimator of the user's, which fails while SHAKY is set."""
    (tmp_path / "shaky_range.py").write_text(RANGE)
    monkeypatch.syspath_prepend(tmp_path)
    return "quantizer.steps.act.range._target_=shaky_range.Shaky"


def test_a_failing_cell_stops_no_other(
    qdexp: Command, executed: Executed, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shaky: str
) -> None:
    command = ("-m", "method=ptq,timestep_aware", "quant.act_bits=8,32", shaky)
    monkeypatch.setenv("SHAKY", "1")
    code, out, err = qdexp(*command)
    assert code == 1
    assert "qdexp: 2 of 3 cells failed: ptq w4a8, timestep_aware w4a8; the same command" in err
    assert "failed: tiny-ptq-w4a8" in out
    records = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out" / "records").iterdir()}
    failed = {name: record for name, record in records.items() if record["status"] == "failed"}
    assert sorted(record["axes"]["act_bits"] for record in failed.values()) == [8, 8]
    for record in failed.values():
        assert "not today" in record["error"].pop("traceback")
        assert record["error"] == {
            "stage": "act",
            "type": "ArithmeticError",
            "message": "cannot range:\nnot today",
        }
        assert record.keys() >= {"format", "axes", "config", "identity", "files", "keys", "protocol", "provenance"}
    assert len(records) == 3  # where weights alone are rounded to the nearest, the rows make no difference

    before = executed()
    monkeypatch.delenv("SHAKY")
    code, out, err = qdexp(*command)
    assert (code, err) == (0, "")
    mended = {path.name: json.loads(path.read_text()) for path in (tmp_path / "out" / "records").iterdir()}
    assert mended.keys() == records.keys()
    assert all(record["status"] == "complete" for record in mended.values())
    assert {name: records[name] for name in records.keys() - failed} == {name: mended[name] for name in records.keys() - failed}
    made = executed()[len(before) :]
    again = ["act", "coverage", "curves", "samples", "features", "fid", "kid", "isc", "precision_recall"]
    again += ["noise_error", "distance", "ssim", "sizes", "quantized"]
    assert sorted(entry.split("-")[0] for entry in made) == sorted(2 * again)


def test_interrupt_is_one_line(qdexp: Command, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shaky: str) -> None:
    monkeypatch.setenv("SHAKY", "stop")
    code, _, err = qdexp("-m", "method=ptq,timestep_aware", shaky)
    assert code == 1
    assert err == "qdexp: stopped; finished stages are kept, the same command goes on"
    assert not (tmp_path / "out" / "records").exists()
    monkeypatch.delenv("SHAKY")
    assert qdexp("-m", "method=ptq,timestep_aware", shaky)[0] == 0


RELOAD = """
import json, sys
from pathlib import Path
import torch, diffusers
from safetensors.torch import load_file
import qdexp
from qdexp.sampling.noise import draw, generators

record = json.loads(Path(sys.argv[1]).read_text())
out, config = Path(sys.argv[1]).parents[1], record["config"]
torch.set_num_threads(record["provenance"]["machine"]["threads"])
assert not Path(config["model"]["weights"]).exists()
network = qdexp.load(out / record["artifacts"]["checkpoint"])
options = {name: value for name, value in config["protocol"]["scheduler"].items() if name != "_target_"}
scheduler = diffusers.DPMSolverMultistepScheduler(**options, **config["model"]["schedule"])
scheduler.set_timesteps(config["protocol"]["steps"])
x_t = draw(generators("evaluation", 0, range(8, 16)), (1, 28, 28))
with torch.no_grad():
    for t in scheduler.timesteps:
        x_t = scheduler.step(network(x_t, t).sample, t, x_t).prev_sample
images = ((x_t.clamp(-1, 1) + 1) * 127.5).round().byte()
stored = load_file(out / record["artifacts"]["samples"] / "shard-00001.safetensors")["images"]
assert torch.equal(images, stored), (images.int() - stored.int()).abs().max()
print("equal")
"""


def test_checkpoint_alone_makes_the_stored_images(cell_of: CellOf, own_conf: Path, tmp_path: Path) -> None:
    """In a fresh process, without the original weights, by a diffusers loop in the open: bit for bit."""
    weights = tmp_path / "copy.safetensors"
    weights.write_bytes((own_conf / "tiny.safetensors").read_bytes())
    cell = cell_of(f"model.weights={weights}")
    cell.run()
    weights.unlink()
    path = cell.out / "records" / f"{cell.name}.json"
    (tmp_path / "reload.py").write_text(RELOAD)
    done = Python(["reload.py", str(path)], tmp_path).wait()
    assert (done.returncode, done.stdout) == (0, "equal\n"), done.stderr


def test_loaded_checkpoint_takes_the_place_of_the_original(finished: CellOf) -> None:
    cell = finished()
    network = package.load(cell.out / record_of(cell)["artifacts"]["checkpoint"])
    assert type(network).__name__ == "UNet2DModel"
    assert not network.training
