"""``python -m qdexp.export``: what it writes and prints, and what it refuses."""

import importlib.util
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from families import FAMILIES
from torch import nn

from qdexp import record as records
from qdexp.errors import UserError
from qdexp.export import graph, limits, runtime
from qdexp.export.__main__ import main
from qdexp.export.source import Source
from qdexp.layout import Layout
from qdexp.models import checkpoint
from qdexp.quant.affine import QParams
from qdexp.quant.blocks import Batch
from qdexp.quant.granularity import PerChannel, PerGroup
from qdexp.quant.layers import to_quantized
from qdexp.quant.scheme import Scheme

Export = Callable[..., str]
CELL = "dit-ptq-w4a8-0123456789"


@pytest.fixture
def export(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Export:
    """``export(*arguments)``: what the command prints, without a new process."""

    def run(*arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", ["qdexp.export", *map(str, arguments)])
        capsys.readouterr()
        main()
        return capsys.readouterr().out

    return run


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """An output folder with one cell, of a small transformer."""
    family = next(one for one in FAMILIES if one.name == "dit")
    folder = "made/checkpoint"
    checkpoint.save(tmp_path / folder, family.quantized(4, 8), family.architecture)
    model = {"name": "dit", "network": family.architecture, "shape": family.shape, "schedule": {"num_train_timesteps": 50}}
    record: dict[str, Any] = {
        "format": records.FORMAT,
        "cell": CELL,
        "status": "complete",
        "axes": {"model": "dit", "method": "ptq", "quant": "w4a8", "weight_bits": 4, "act_bits": 8, "seed": 0},
        "identity": "abc",
        "files": {},
        "config": {"model": model},
        "keys": {"act": "1234"},
        "protocol": {"hash": "h", "name": "quick", "n": 10, "steps": 4, "scheduler": {"_target_": "a"}, "extractor": "none"},
        "provenance": {"git_commit": "fedcba"},
        "metrics": {},
        "artifacts": {"checkpoint": folder},
    }
    records.write(tmp_path, record)
    return tmp_path


def test_a_cell(export: Export, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    printed = export(CELL[:9], "--out", out, "--to", "onnx").splitlines()
    path = Layout(out).export(CELL)
    assert [line.split()[0] for line in printed] == ["written", "quantized", "held", "last"]
    assert str(path) in printed[0]
    assert "opset 21" in printed[0]
    assert "100.00% of the MACs" in printed[1]
    file = onnx.load(path)
    assert [(one.name, one.type.tensor_type.elem_type) for one in file.graph.input] == [
        ("sample", onnx.TensorProto.FLOAT),
        ("timestep", onnx.TensorProto.FLOAT),
        ("class_labels", onnx.TensorProto.INT64),
    ]
    assert [one.name for one in file.graph.output] == ["out_sample"]
    told = {one.key: one.value for one in file.metadata_props}
    assert (told["qdexp.cell"], json.loads(told["qdexp.keys"])) == (CELL, {"act": "1234"})
    assert json.loads(told["qdexp.provenance"]) == {"git_commit": "fedcba"}
    assert json.loads(told["qdexp.config"])["model"]["name"] == "dit"
    digest = checkpoint.metadata(out / "made/checkpoint")["digest"]
    assert told["qdexp.checkpoint"] == digest
    assert "torch" in json.loads(told["qdexp.exported"])["versions"]
    assert [one.name for one in path.parent.iterdir()] == [path.name]

    before, model = path.read_bytes(), graph.ir.load(path)
    monkeypatch.setattr(graph, "exported", lambda *_: model)  # which takes seconds

    def full(*_: Any, **__: Any) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched, pytest.raises(UserError, match=r"^--file .*: No space left on device; nothing is"):
        patched.setattr(graph.ir, "save", full)
        export(CELL, "--out", out)
    monkeypatch.setattr(runtime, "APART", -1)  # as if both computed different things
    monkeypatch.setattr(runtime, "TIMES", -1)
    with pytest.raises(UserError, match=r"^--to onnx: ONNX Runtime .* and the simulated network differ by .* no file is left"):
        export(out / "made/checkpoint", "--file", path)
    assert path.read_bytes() == before
    assert [one.name for one in path.parent.iterdir()] == [path.name]


def test_what_is_missing_is_told_before_any_work(export: Export, out: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "onnxscript" else found(name))
    with pytest.raises(UserError, match=r"^--to onnx: onnxscript is not installed; pip install 'qdexp\[onnx\]'$"):
        export(CELL, "--out", out)
    monkeypatch.undo()


def test_a_cell_that_there_is_not(export: Export, out: Path) -> None:
    with pytest.raises(UserError, match=r"no cell in .*, did you mean"):
        export(CELL.replace("ptq", "pqt"), "--out", out)
    assert not Layout(out).export(CELL).parent.exists()


def test_a_record_tells_its_model_and_not_what_is_trusted(out: Path) -> None:
    """It may come from anybody."""
    assert not Source.of(CELL, out, ()).trust
    record = records.read(out, CELL)
    assert record is not None
    del record["config"]["model"]["shape"]
    records.write(out, record)
    with pytest.raises(UserError, match=rf"^{CELL}: its record does not tell its model; name the folder of its checkpoint$"):
        Source.of(CELL, out, ())


def test_a_network_that_says_no_shape(tmp_path: Path) -> None:
    source = Source(tmp_path, None)
    vars(source)["network"] = nn.Linear(4, 4)
    with pytest.raises(UserError, match=r": does not say which shape its network's x_t has; name the cell, or its record$"):
        source.batch(2)


REFUSED: dict[str, tuple[dict[str, Scheme], dict[str, Scheme], str]] = {
    "floating point": (
        {"deep": Scheme(8, PerChannel(), True, number="e4m3"), "attention.q": Scheme(8, PerChannel(), True, number="e4m3")},
        {},
        "--to onnx: cannot hold weights of E4M3 (choose a quant of integers): deep, attention.q",
    ),
    "activations in floating point": (
        {},
        {"last": Scheme(4, symmetric=True, number="e2m1")},
        "--to onnx: cannot hold activations of E2M1 (choose a quant of integers): last.input_quantizer",
    ),
    "tokens": (
        {},
        {"attention.q": Scheme(8, PerGroup(), time="dynamic")},
        "--to onnx: cannot hold activations per token (choose quant.act.granularity=per_tensor): attention.q.input_quantizer",
    ),
    "groups": (
        {},
        {"deep": Scheme(4, PerGroup(16, 1), time="dynamic")},
        "--to onnx: cannot hold activations groups of 16 (choose quant.act.granularity=per_tensor): deep.input_quantizer",
    ),
}


@pytest.mark.parametrize("what", REFUSED)
def test_what_cannot_be_held_is_refused_by_name(small: Callable[..., Any], what: str) -> None:
    weights, acts, told = REFUSED[what]
    with pytest.raises(UserError) as caught:
        limits.check(small(weights, acts).network)
    assert str(caught.value) == told


def test_other_dtypes_are_refused(small: Callable[..., Any]) -> None:
    with pytest.raises(UserError, match=r"^--to onnx: cannot hold networks in bfloat16, .*: first, deep, joined and 6 more$"):
        limits.check(small({}, {}).network.bfloat16())


def test_what_torch_cannot_export_is_one_line() -> None:
    class Asking(nn.Module):
        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            return x if bool(t.sum() > 0) else -x

    with pytest.raises(UserError, match=r"^model.network: torch.onnx cannot export it: [^\n]+$"):
        graph.exported(Asking().eval(), (torch.randn(2, 3), torch.ones(2), {}), 4)


def test_what_onnx_runtime_cannot_run_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "a.onnx").write_bytes(b"no model")
    with pytest.raises(UserError, match=r"^--to onnx: ONNX Runtime [\d.]+ cannot run the file \([^\n]+\): none is left"):
        runtime.Runtime(tmp_path / "a.onnx")


def test_large_weights_lie_beside_the_file(tmp_path: Path) -> None:
    class Scaled(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.linear = to_quantized(nn.Linear(64, 64), Scheme(4, PerChannel()))
            codes = torch.randint(16, (64, 64), dtype=torch.uint8)
            self.linear.set_weight(codes, QParams(torch.rand(64), torch.randint(16, (64,), dtype=torch.int32)))

        def forward(self, x: torch.Tensor, t: torch.Tensor) -> torch.Tensor:
            y: torch.Tensor = self.linear(x) * t[:, None]
            return y

    network = Scaled().eval().requires_grad_(False)
    batch: Batch = torch.randn(2, 64), torch.ones(2), {}
    model, path = graph.exported(network, batch, 4), tmp_path / "a.onnx"
    found = graph.write(model, path, {}, lambda part: runtime.held(network, runtime.Runtime(part), batch), largest=1000)
    assert found.runtime.largest < 1e-5
    first, second = sorted(tmp_path.iterdir())
    assert second == path
    assert first.name.startswith("a-")
    assert first.suffix == ".data"
    assert path.stat().st_size < 4000 < first.stat().st_size + 2000
    runtime.held(network, runtime.Runtime(path), batch)

    def refuses(_: Path) -> None:
        raise OSError(28, "no space left")

    with pytest.raises(OSError, match="no space"):
        graph.write(model, tmp_path / "b.onnx", {}, refuses, largest=1000)
    assert sorted(tmp_path.iterdir()) == [first, second]
