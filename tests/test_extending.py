"""The examples of a user's own models, steps, metrics and backends run as the docs show them."""

import json
import os
import re
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import pytest
import torch
from processes import Python, script

import qdexp
from qdexp.cell import Cell

EXTENDING = (Path(__file__).parents[1] / "docs" / "extending.md").read_text()

LOAD = """
import sys, qdexp
from qdexp.errors import UserError
try:
    qdexp.load(sys.argv[1])
except UserError as error:
    assert "mine.TinyNet" in str(error) and "mine" not in sys.modules
print(type(qdexp.load(sys.argv[1], trust=["mine.TinyNet"])).__name__)
"""


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    tmp_path = tmp_path_factory.mktemp("checkout")
    files = re.findall(r"`(mine/\S+)`\n\n```\w+\n(.*?)```", EXTENDING, flags=re.DOTALL)
    for name, content in files:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    return tmp_path


SMALL = "protocol.n=16 sampling.batch=8 protocol.heldout=8 protocol.steps=4 trajectory.samples=80 tracker=none"


def run(checkout: Path, text: str) -> None:
    """The commands of a block, each with small numbers."""
    script(re.sub(r"(python -m qdexp.*)", rf"\1 {SMALL}", text.replace("\\\n", " ")), checkout)


SCRIPTS = re.findall(r"```bash\n(.*?)```", EXTENDING, flags=re.DOTALL)


def test_the_examples_are_short() -> None:
    blocks = re.findall(r"`mine/\S+\.py`\n\n```python\n(.*?)```", EXTENDING, flags=re.DOTALL)
    assert len(blocks) == 5
    assert all(block.count("\n") <= 60 for block in blocks)


def test_the_example_of_own_model_estimator_and_strategy(checkout: Path) -> None:
    run(checkout, SCRIPTS[0])
    (record,) = (checkout / "outputs" / "records").glob("mine-deviations-ends-w4a8-*.json")
    assert '"status": "complete"' in record.read_text()
    (saved,) = (checkout / "outputs" / "store").glob("act-*/checkpoint")
    (checkout / "load.py").write_text(LOAD)
    done = Python(["load.py", str(saved)], checkout, {**os.environ, "PYTHONPATH": "mine"}).wait()
    assert (done.returncode, done.stdout) == (0, "TinyNet\n"), done.stderr


def test_the_example_of_a_network_of_a_new_kind(checkout: Path) -> None:
    """Quantized wholly, but for what the docs name, and learned block by block."""
    run(checkout, SCRIPTS[1].replace("python -m qdexp", "python -m qdexp calib.timesteps=4"))
    (path,) = (checkout / "outputs" / "records").glob("transformer-reconstruction-w4a8-*.json")
    record = json.loads(path.read_text())
    assert record["status"] == "complete" and record["coverage"]["quantized"] == {"macs": 1.0, "parameters": 1.0}
    assert {one["kind"] for one in record["coverage"]["left_out"]} == {
        "parameters outside layers",
        "biases",
        "Embedding",
        "LayerNorm",
    }
    assert record["reconstruction"]["weights"]["block"] == ["patches", "time", "blocks.0", "blocks.1", "last"]


def test_the_example_of_a_step_of_ones_own(checkout: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In a sweep, shared step by step, with what it changes in the checkpoint; it stands in table and page."""
    run(
        checkout,
        SCRIPTS[2].replace(
            "calib=uniform", "calib=uniform model=mine calib.rows=8 calib.timesteps=4 quantizer.steps.act.rows=16"
        ),
    )
    records = [json.loads(path.read_text()) for path in (checkout / "outputs" / "records").glob("mine-*-uniform-w3a8-*.json")]
    found = {(one["axes"]["quantizer"], one["config"]["quantizer"]["steps"].get("bias_correction", {}).get("strength")): one
             for one in records}  # fmt: skip
    assert found.keys() == {("linear", None), ("bias_corrected", None), ("bias_corrected", 0.5)}  # 1 is what it is anyway
    assert len({one["keys"]["weights"] for one in records}) == 1
    monkeypatch.syspath_prepend(checkout / "mine")
    folders = [
        checkout / "outputs" / found[key]["artifacts"]["checkpoint"]
        for key in (("linear", None), ("bias_corrected", 0.5), ("bias_corrected", None))
    ]
    monkeypatch.delitem(sys.modules, "mine", raising=False)
    biases = [qdexp.load(folder, trust=["mine.TinyNet"]).get_parameter("last.bias") for folder in folders]
    del sys.modules["mine"]  # other tests have another
    torch.testing.assert_close(biases[1] - biases[0], (biases[2] - biases[0]) / 2)
    assert (biases[2] - biases[0]).abs().max() > 0
    tables = [path.read_text() for path in (checkout / "outputs" / "sweeps").glob("*/table.md")]
    assert any("bias_corrected-uniform" in table for table in tables)


def test_the_example_of_a_backend_of_ones_own(checkout: Path) -> None:
    """In a sweep beside simulated arithmetic: one network, drawn by both, told apart in the table."""
    options = "model=mine method=timestep_aware quant=w8a8 calib.timesteps=4 calib.rows=8 out=backends sweep=own"
    run(checkout, "python mine/mine.py\n" + SCRIPTS[4].replace("integer\n", f"integer {options}\n"))
    records = [json.loads(path.read_text()) for path in (checkout / "backends" / "records").glob("*.json")]
    simulated, integer = sorted(records, key=lambda record: str(record["axes"]["backend"]), reverse=True)
    assert [one["axes"]["backend"] for one in (simulated, integer)] == ["simulated", "integer"]
    same = {role for role, key in simulated["keys"].items() if integer["keys"][role] == key}
    assert same >= {"weights", "act", "coverage"}
    assert not same & {"samples", "curves", "layers", "fid"}
    assert integer["metrics"] == simulated["metrics"]  # it takes no layer of so small a model
    table = (checkout / "backends" / "sweeps" / "own" / "table.md").read_text()
    assert all(f"timestep_aware backend={name}" in table for name in ("simulated", "integer"))


def test_the_backend_of_the_example_computes_what_the_simulated_arithmetic_does(
    checkout: Path, finished: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.syspath_prepend(checkout / "mine")
    monkeypatch.delitem(sys.modules, "integer", raising=False)
    backend = import_module("integer").Integer(least=2)
    folder = next((finished().out / "store").glob("act-*/checkpoint"))
    networks = [qdexp.load(folder, backend=one) for one in ("simulated", backend)]
    kinds = [type(module).__name__ for module in networks[1].modules()]
    assert kinds.count("IntegerLinear") > 5
    x_t, t = torch.randn(4, 1, 28, 28), torch.tensor([3, 700, 20, 999])
    with torch.inference_mode():
        expected, found = (network(x_t, t).sample for network in networks)
        assert (found - expected).norm() < 0.02 * expected.norm()
        layers = [network.get_submodule("time_embedding.linear_1") for network in networks]
        x = torch.randn(4, 8)[:, :, None].expand(4, 8, 3).transpose(1, 2)  # not contiguous
        torch.testing.assert_close(layers[1](x), layers[0](x))


def test_the_example_of_a_metric_of_ones_own(checkout: Path) -> None:
    """Measured of finished cells, whose images are not sampled again; it stands in table, record and page."""
    first, later = re.split(r"\n(?=python -m qdexp .*'metric)", SCRIPTS[3])
    out = "out=measured calib.rows=8"
    run(checkout, first.replace("method=fp,ptq", f"method=fp,ptq {out}"))
    executions = checkout / "measured" / "executions.jsonl"
    made = executions.read_text().splitlines()
    run(checkout, f"export PYTHONPATH=mine\n{later}".replace("method=fp,ptq", f"method=fp,ptq {out}"))
    added = [json.loads(line)["entry"].rpartition("-")[0] for line in executions.read_text().splitlines()[len(made) :]]
    assert added == ["sharpness", "sharpness"]
    records = [json.loads(path.read_text()) for path in (checkout / "measured" / "records").glob("*.json")]
    assert [{"sharpness", "sharpness_lost"} & one["metrics"].keys() == {"sharpness"} for one in records].count(True) == 1
    assert all(one["config"]["metric"]["sharpness"]["scale"] == 10 for one in records)
    (newest,) = [path for path in (checkout / "measured" / "sweeps").glob("*/table.md") if " sharpness " in path.read_text()]
    assert " sharpness - fp " in newest.read_text() or " FID - fp " in newest.read_text()
