"""``python -m benchmarks execution``, everything tiny: its tables, its file, what it says of mistakes."""

import json
from pathlib import Path

import pytest
import torch
from backend_networks import NEEDS_VNNI

from benchmarks.__main__ import main
from benchmarks.execution import peak
from benchmarks.execution.networks import Pair
from benchmarks.execution.speed import EAGER, INTEGERS, SIMULATED
from benchmarks.subject import config_of
from qdexp.quant.network import activation_quantizers, quantized_layers

pytestmark = NEEDS_VNNI


@pytest.mark.slow
@pytest.mark.parametrize("model", ["ddpm_fashion", "dit_fashion", "ldm_bedroom"])
def test_each_model_has_times_shares_and_operators(model: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Half a minute each: a process starts, and a network of its own is quantized."""
    with pytest.raises(SystemExit) as end:
        main(["execution", model, "--small", "--eager", "--threads", "1", "--out", str(tmp_path / "found.json")])
    assert end.value.code == 0, capsys.readouterr().out
    found = json.loads((tmp_path / "found.json").read_text())
    rows = found["sections"][model]["rows"]
    times = [row for row in rows if "arithmetic" in row]
    assert [row["arithmetic"] for row in times] == [EAGER, SIMULATED, INTEGERS]
    assert times[0]["float32 / it"] == "1 [1, 1]"
    shares = {row["multiplied by"]: float(row["share of MACs"].rstrip("%")) for row in rows if "share of MACs" in row}
    assert sum(shares.values()) == pytest.approx(100, abs=0.1)
    assert shares["int8 kernels"] > 50
    operators = {row["operator"]: row for row in rows if "operator" in row}
    kernels = [row for name, row in operators.items() if name.startswith("onednn::q")]
    assert all(row[f"{EAGER}, ms"] == row[f"{SIMULATED}, ms"] == "0" for row in kernels)


def test_a_pair_is_one_network_twice() -> None:
    model = config_of(["model=ddpm_fashion", "method=ptq", "tracker=none", "device=cpu"]).model
    pair = Pair.of(model, 2, 4, 8)
    layers = dict(quantized_layers(pair.quantized))
    assert {layer.weight_scheme.bits for layer in layers.values() if layer.weight_scheme} == {4, 8}
    assert any(layer.parts for layer in layers.values())
    assert all(quantizer.mode == "on" for _, quantizer in activation_quantizers(pair.quantized))
    assert not dict(quantized_layers(pair.full))


def test_rates_are_those_of_both_types() -> None:
    found = peak.rates(64)
    assert found.keys() == {"float32", "int8"}
    assert all(rate > 1e6 for rate in found.values())
    assert torch.get_num_threads() == 1


@pytest.mark.parametrize(
    ("arguments", "told"),
    [(["speed"], "no section is called speed; choose from peak, ddpm_fashion"), (["--threads", "0"], "must be at least 1")],
)
def test_mistakes_are_told(arguments: list[str], told: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["execution", *arguments])
    assert told in capsys.readouterr().err
