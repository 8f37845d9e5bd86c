import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from qdexp.tracking.log import HEADER, Run, chunks, read
from qdexp.tracking.mirror import LONGEST, SETTINGS, TrackingError, mirror, run_id

Record = dict[str, Any]
EntryOf = Callable[[Path, dict[str, bytes]], list[Path]]
Made = Callable[[dict[str, bytes]], Path]


@pytest.fixture
def made(record: Record, tmp_path: Path, entry: EntryOf) -> Made:
    """``made(content)``: the folder of the record's checkpoint in ``tmp_path/out``, with these files."""

    def folder(content: dict[str, bytes]) -> Path:
        place = tmp_path / "out" / record["artifacts"]["checkpoint"]
        entry(place.parent, {f"{place.name}/{name}": data for name, data in content.items()})
        return place

    return folder


def mirrored(record: Record, folder: Path, sweep: str = "sweep", **more: Any) -> Run:
    directory = mirror(record, sweep, folder, "project", "offline", None, **more)
    assert directory is not None
    assert directory.is_relative_to(folder)
    (log,) = directory.glob("*.wandb")
    return read(log)


def headline(run: Run) -> Record:
    """The summary without what W&B adds by itself."""
    return {name: value for name, value in run.summary.items() if not name.startswith("_")}


def test_complete_record(record: Record, tmp_path: Path) -> None:
    run = mirrored(record, tmp_path)
    assert (run.run.run_id, run.run.display_name) == ("sweep-net-ptq-w4a8-1a2b3c4d5e", record["cell"])
    assert (run.run.project, run.run.run_group, run.run.job_type, run.run.host) == ("project", "sweep", "ptq", "node7")
    assert list(run.run.tags) == ["net", "w4a8", "last"]
    assert run.exit_code == 0
    assert not run.output

    config = dict(run.config)
    assert config.pop("record") == {
        name: record[name] for name in ("format", "config", "identity", "keys", "files", "protocol", "provenance", "artifacts")
    }
    flat = {name: value for name, value in record["protocol"].items() if name != "floor"}
    protocol = {f"protocol_{name}": value for name, value in flat.items()}
    floor = {"protocol_floor_fid": 1.25, "protocol_floor_n": 1024}
    config.pop("_wandb")
    assert config == {
        **record["axes"],
        **protocol,
        **floor,
        "cell": record["cell"],
        "row": "ptq w4a8 eeeeeeeeee",
        "steps": "act: Observe",
        "sweep": "sweep",
    }

    costs = {"samples_seconds": 2.0, "samples_peak_memory_mb": 900.0, "total_seconds": 3.5, "total_peak_memory_mb": 900.0}
    assert headline(run) == {"status": "complete", **record["metrics"], **costs}


def test_curves_are_history_over_their_own_axis(record: Record, tmp_path: Path) -> None:
    record["curves"]["free_running"][1] = float("inf")
    run = mirrored(record, tmp_path)
    rows = [{name: value for name, value in row.items() if not name.startswith("_")} for row in run.history]
    step, forced, free, timestep = (f"curves/{n}" for n in ("sampler_step", "teacher_forced", "free_running", "timestep"))
    assert rows == [
        {step: 0, timestep: 999, forced: 0.5, free: 0.5},
        {step: 1, timestep: 500, forced: 0.25},
        {step: 2, timestep: 0, forced: 0.125, free: 1.0},
    ]
    assert run.metrics.keys() == {step, timestep, forced, free}
    assert all(run.metrics[name].step_metric == step for name in (timestep, forced, free))
    assert not run.metrics[step].step_metric


def test_failed_record(failed: Record, tmp_path: Path) -> None:
    run = mirrored(failed, tmp_path)
    assert run.exit_code == 1
    error = {"error_stage": "act", "error_type": "ValueError", "error_message": "no rows"}
    assert headline(run) == {"status": "failed", **error}
    assert run.config["record"]["config"] == failed["config"]
    assert not run.history


def test_two_cells_in_one_process(record: Record, failed: Record, tmp_path: Path) -> None:
    bad, good = mirrored(failed, tmp_path), mirrored(record, tmp_path)
    assert (bad.exit_code, good.exit_code) == (1, 0)
    assert bad.run.run_id != good.run.run_id
    assert "error_type" not in good.summary
    assert "fid" not in bad.summary


def test_mirroring_again_replaces(record: Record, tmp_path: Path) -> None:
    mirrored(record, tmp_path, sweep="other")
    mirrored(record, tmp_path)
    record["metrics"]["fid"] = 11.0
    assert mirrored(record, tmp_path).summary["fid"] == 11.0
    logs = sorted(path.name for path in tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert logs == [f"run-{sweep}-{record['cell']}.wandb" for sweep in ("other", "sweep")]


def test_metrics_that_are_not_finite_are_named(record: Record, tmp_path: Path) -> None:
    record["metrics"] |= {"fid": float("nan"), "psnr": float("inf")}
    record["protocol"]["floor"]["fid"] = float("nan")
    run = mirrored(record, tmp_path)
    assert run.summary["not_finite"] == "fid, psnr"
    assert "fid" not in run.summary
    assert "psnr" not in run.summary
    assert run.summary["isc"] == 7.0
    assert run.config["protocol_floor_fid"] is None


def test_coverage_is_flat_by_bits(record: Record, tmp_path: Path) -> None:
    record["coverage"] = {"macs": {"w4a8": 0.9, "full": 0.1}, "parameters": {"w4a8": 1.0}, "left_out": [{"kind": "Conv3d"}]}
    run = mirrored(record, tmp_path)
    assert {name: run.summary[f"coverage_{name}"] for name in ("macs_w4a8", "macs_full", "parameters_w4a8")} == {
        "macs_w4a8": 0.9,
        "macs_full": 0.1,
        "parameters_w4a8": 1.0,
    }
    assert run.config["record"]["coverage"] == record["coverage"]


def test_odd_names_and_keys(record: Record, tmp_path: Path) -> None:
    cell = "a/b:c;d,e#f?g'h i\\j é*[x]"
    record["axes"] |= {"model": "m" * 100, "calib": None, "layers": {"out.*": {"bits": 8}}}
    record["config"] |= {7: {"a.b": (1, 2)}, "": "$x"}
    run = mirrored({**record, "cell": cell}, tmp_path, sweep="s w/e#p")
    assert run.run.display_name == run.config["cell"] == cell
    assert run.run.run_group == run.config["sweep"] == "s w/e#p"
    assert [len(tag) for tag in run.run.tags] == [LONGEST, 4]
    assert run.config["record"]["config"]["7"] == {"a.b": [1, 2]}


def test_run_ids_fit_and_differ() -> None:
    assert run_id("night", "net-ptq-1a2b") == "night-net-ptq-1a2b"
    pairs = [("s", "a/b"), ("s", "a:b"), ("s", "a b"), ("s", "a/b "), ("s/a", "b"), ("s", "x" * 200), ("s", "x" * 201)]
    odd = [run_id(sweep, cell) for sweep, cell in pairs]
    assert len(set(odd)) == len(odd)
    assert all(len(name) <= LONGEST and not set(name) & set(":;,#?/' ") for name in odd)


def test_checkpoint_is_an_artifact_that_is_not_copied(record: Record, tmp_path: Path, made: Made) -> None:
    weights = os.urandom(5000)
    checkpoint = made({"weights.safetensors": weights, "scheme.json": b"{}"})
    run = mirrored(record, tmp_path / "mirror", out=tmp_path / "out")
    (artifact,) = run.artifacts
    assert (artifact.name, artifact.type) == (f"checkpoint-{'d' * 16}", "checkpoint")
    metadata = json.loads(artifact.metadata)
    assert metadata["sha256"]["weights.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert (metadata["key"], metadata["parent_key"]) == ("d" * 16, "c" * 16)
    held = {entry.path: Path(entry.local_path) for entry in artifact.manifest.contents}
    assert held == {name: checkpoint / name for name in ("scheme.json", "weights.safetensors")}
    assert not [path for path in (tmp_path / "mirror").rglob("*") if path.is_file() and path.read_bytes() == weights]


def test_nothing_but_a_whole_checkpoint_of_the_store_is_sent(record: Record, tmp_path: Path, made: Made) -> None:
    checkpoint = made({"weights": b"weights"})
    (tmp_path / "private").mkdir()
    (tmp_path / "private" / "key").write_text("secret")
    for elsewhere in ("../private", str(tmp_path / "private"), "store/../../private", ".", "store"):
        other = {**record, "artifacts": {"checkpoint": elsewhere}}
        with pytest.raises(TrackingError, match="lies in no entry of"):
            mirrored(other, tmp_path / "mirror", out=tmp_path / "out")
    (checkpoint / "weights").write_bytes(b"weightz")
    with pytest.raises(TrackingError, match=r"is corrupt \(checkpoint/weights is not what manifest\.json says"):
        mirrored(record, tmp_path / "mirror", out=tmp_path / "out")


def test_a_corrupt_table_of_layers_is_not_shown(record: Record, tmp_path: Path, entry: EntryOf) -> None:
    record["keys"]["layers"], record["artifacts"] = "e" * 16, {}
    (path,) = entry(tmp_path / "out" / "store" / f"layers-{'e' * 16}", {"layers.json": b'[{"name": "conv_in", "error": 1.99}]'})
    mirrored(record, tmp_path / "mirror", out=tmp_path / "out")
    path.write_text(path.read_text().replace("1.99", "3.99"))
    with pytest.raises(TrackingError, match=r"is corrupt \(layers\.json"):
        mirrored(record, tmp_path / "mirror", out=tmp_path / "out")


def test_sample_grid_is_an_image(record: Record, tmp_path: Path) -> None:
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    Image.fromarray(pixels).save(tmp_path / "grid.png")
    run = mirrored(record, tmp_path / "mirror", grid=tmp_path / "grid.png")
    (copy,) = (tmp_path / "mirror").rglob(Path(run.history[-1]["samples.path"]).name)
    assert np.array_equal(np.asarray(Image.open(copy)), pixels)


def test_large_record_spans_blocks(record: Record, tmp_path: Path) -> None:
    record["config"]["long"] = "x" * 100_000
    run = mirrored(record, tmp_path)
    assert run.config["record"]["config"]["long"] == "x" * 100_000


@pytest.mark.parametrize(
    ("project", "more"), [("a/b", {}), ("p", {"grid": Path("missing.png")}), ("p", {"out": Path("missing")})]
)
def test_a_failed_mirror_is_one_line(record: Record, tmp_path: Path, project: str, more: dict[str, Any]) -> None:
    with pytest.raises(TrackingError) as caught:
        mirror(record, "sweep", tmp_path, project, "offline", None, **more)
    message = str(caught.value)
    assert record["cell"] in message
    assert "\n" not in message
    assert all(read(log).exit_code == 1 for log in tmp_path.glob("wandb/offline-run-*/*.wandb"))
    assert mirrored(record, tmp_path).exit_code == 0


def test_unreachable_server_is_one_line(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setitem(SETTINGS, "init_timeout", 1.0)
    with pytest.raises(TrackingError, match=f"^W&B run of {record['cell']} not written: "):
        mirror(record, "unreachable", tmp_path, "project", "online", None)


def test_environment_is_put_back(record: Record, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_DIR", "/elsewhere")
    monkeypatch.delenv("WANDB_MODE", raising=False)
    before = dict(os.environ)
    mirrored(record, tmp_path)
    assert os.environ == before


ALONE = """
import json, socket, sys
from pathlib import Path

def watch(event, args):
    if event in ("socket.getaddrinfo", "socket.gethostbyname"):
        raise SystemExit(f"looked up {args}")
    if event == "socket.connect" and args[0].family != socket.AF_UNIX and args[1][0] != "127.0.0.1":
        raise SystemExit(f"connected to {args[1]}")

sys.addaudithook(watch)
from qdexp.tracking.mirror import mirror
assert "wandb" not in sys.modules and "torch" not in sys.modules
record = json.loads(Path("record.json").read_text())
mirror(record, "sweep", Path("mirror"), "project", "offline", None, out=Path("out"))
"""


def test_nothing_is_written_elsewhere(record: Record, tmp_path: Path, made: Made) -> None:
    """Alone in a fresh process: the home folder stays empty, the terminal silent, no name is looked up."""
    home = tmp_path / "home"
    home.mkdir()
    made({"weights": b"w"})
    (tmp_path / "record.json").write_text(json.dumps(record))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("WANDB", "XDG"))}
    env = {**kept, "HOME": str(home), "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run([sys.executable, "-c", ALONE], cwd=tmp_path, env=env, capture_output=True, text=True)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert not any(home.iterdir())
    assert {path.name for path in tmp_path.iterdir()} == {"home", "out", "mirror", "record.json"}


def test_our_reader_agrees_with_the_official_one(record: Record, failed: Record, tmp_path: Path) -> None:
    record["metrics"]["psnr"] = float("nan")
    record["config"]["quant"]["layers"] = failed["config"]["quant"]["layers"] = {"a": 1}  # theirs does not show an empty dict
    for number, one in enumerate((record, failed)):
        ours = mirrored(one, tmp_path / str(number))
        (log,) = (tmp_path / str(number)).glob("wandb/offline-run-*/*.wandb")
        command = [sys.executable, "-m", "wandb", "leet", "inspect", "--summary", "--json", str(log)]
        env = {**os.environ, "HOME": str(tmp_path), "WANDB_MODE": "offline"}
        theirs = json.loads(subprocess.run(command, env=env, capture_output=True, text=True, check=True).stdout)
        assert theirs["run_id"] == ours.run.run_id
        assert theirs["exit_code"] == ours.exit_code
        assert theirs["config"] == {name: value for name, value in ours.config.items() if name != "_wandb"}
        seen = {name: value for name, value in theirs["summary"].items() if not name.startswith("_")}
        assert seen == headline(ours)


def test_reader_refuses_a_corrupt_log(record: Record, tmp_path: Path) -> None:
    mirrored(record, tmp_path)
    (log,) = tmp_path.glob("wandb/offline-run-*/*.wandb")
    raw = log.read_bytes()
    flipped = bytearray(raw)
    flipped[len(raw) // 2] ^= 1
    for corrupt in (bytes(flipped), raw[:-3], b"x" + raw[1:]):
        with pytest.raises(ValueError, match=r"corrupt at|not a"):
            list(chunks(corrupt))
    assert raw.startswith(HEADER)
    assert list(chunks(raw))
