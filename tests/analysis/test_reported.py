import json
import runpy
import sys
from dataclasses import asdict
from pathlib import Path
from typing import Any

import pytest
from hydra import compose, initialize_config_dir

from qdexp.config import Config
from qdexp.errors import UserError
from qdexp.paths import conf_folder
from qdexp.report.comparison import Line
from qdexp.report.conformance import Paper
from qdexp.sampling.sampler import Sampler
from qdexp.stages.calibration import chosen_rows
from qdexp.sweep.freeze import freeze

SCRIPT = Path(__file__).parents[2] / "analysis" / "reported.py"
PAPERS = {
    "paper_cifar10": (100, 0.0, "quadratic", "round"),
    "paper_bedroom": (200, 1.0, "uniform", "truncate"),
    "paper_church": (500, 0.0, "uniform", "truncate"),
}


def record(n: int = 50_000, weights: str = "file", **changes: Any) -> dict[str, Any]:
    axes = {"model": "ldm_bedroom", "method": "qdiffusion", "quant": "w4a8", "weights": weights, "quantizer": "qdiffusion"}
    parts = {"axes": axes | {"weight_bits": 4, "act_bits": 8}, "config": {}, "keys": {}, "files": {}, "identity": "one"}
    protocol = {"hash": "h", "name": "paper", "n": n, "steps": 100, "scheduler": {"_target_": "x.DDIM"}, "extractor": "cnn"}
    numbers = {"protocol": protocol, "metrics": {"fid": 7.125}}
    return {"format": 2, "cell": "x", "status": "complete", **parts, **numbers, **changes}


@pytest.mark.parametrize(
    ("one", "ours"), [(record(), "7.12"), (record(n=5000), "-"), (record(weights="random"), "-"), (None, "-")]
)
def test_ours_stand_beside_the_reported(
    one: dict[str, Any] | None, ours: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "record.json").write_text(json.dumps(one))
    monkeypatch.setattr(sys, "argv", ["reported.py", *([str(tmp_path / "record.json")] if one else [])])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert f"| qdiffusion | w4a8 | 5.32 | {ours} |" in lines
    assert "| fp | full | 2.98 | - |" in lines


def test_seeds_are_meaned_and_two_configurations_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPT.parent)
    ours, where = runpy.run_path(str(SCRIPT))["ours"], ("ldm_bedroom", "qdiffusion", "w4a8", "fid")
    seeds = [record(), record(cell="y", metrics={"fid": 8.125})]
    assert ours(seeds, *where) == "7.62"
    seeds[1]["identity"] = "another"
    message = "ldm_bedroom w4a8: the records are of qdiffusion key=x; qdiffusion key=y: give those of one"
    with pytest.raises(UserError, match=message):
        ours(seeds, *where)


@pytest.mark.parametrize("experiment", PAPERS)
def test_the_settings_are_the_papers(experiment: str) -> None:
    overrides = [f"experiment={experiment}", "method=qdiffusion", "protocol.reference=none.npz"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", overrides, return_hydra_config=True)
    config: Config = freeze(cfg)
    steps, eta, skip, pixels = PAPERS[experiment]
    sampler = Sampler(config.model, config.protocol)
    assert sampler.steps == steps
    assert (config.protocol.scheduler["eta"], config.protocol.scheduler["skip"]) == (eta, skip)
    assert (config.protocol.pixels, config.quant.first_last_bits) == (pixels, None)
    assert (config.protocol.n, config.protocol.extractor) == (50_000, "inception-v3")
    assert len(chosen_rows(config)) == 20 * 256
    assert cfg.hydra.sweeper.params.quant == "w8a32,w4a32,w8a8,w4a8"


ACTIVATIONS = {"quant.act.symmetric", "quantizer.steps.act.range._target_"}


@pytest.mark.parametrize(
    ("model", "experiment", "ranges", "split"),
    [
        ("ddim_cifar10", "paper_cifar10", {"quantizer.steps.weights.range._target_"}, set()),
        ("ldm_bedroom", "paper_bedroom", set(), {"quantizer.steps.split.scope"}),
    ],
)
def test_what_deviates_from_the_papers_is_named(model: str, experiment: str, ranges: set[str], split: set[str]) -> None:
    paper = Paper.read(SCRIPT.with_suffix("") / f"{model}.json")
    for cell in paper.cells:
        method, quant = cell["where"]["method"], cell["where"]["quant"]
        overrides = [f"experiment={experiment}", f"method={method}", f"quant={quant.replace('full', 'w4a8')}"]
        with initialize_config_dir(str(conf_folder()), version_base="1.3"):
            config = freeze(compose("config", overrides, return_hydra_config=True))
        line = Line(method, [{"axes": cell["where"], "config": asdict(config)}], {}, {})
        deviating = {row.what for row in paper.rows(line) if "deviates" in row.remark}
        expected = (split if method == "qdiffusion" else set()) | (ACTIVATIONS if quant.endswith("a8") else set()) | ranges
        assert deviating == (set() if method == "fp" else expected), (method, quant)


def test_the_settings_of_stable_diffusion_are_the_papers(tmp_path: Path) -> None:
    (tmp_path / "prompts.txt").write_text("a cat")
    overrides = ["experiment=paper_sd", "method=qdiffusion", "quant=w4a8", "protocol.reference=none.npz"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        cfg = compose("config", [*overrides, f"protocol.prompts={tmp_path / 'prompts.txt'}"], return_hydra_config=True)
    config: Config = freeze(cfg)
    sampler = Sampler(config.model, config.protocol)
    assert sampler.steps == 51  # PLMS calls the network once more
    assert (config.protocol.steps, config.protocol.guidance) == (50, 7.5)
    assert len(chosen_rows(config)) * 2 == 6_400  # with the prompt and with none
    assert (config.protocol.pixels, config.quant.first_last_bits) == ("truncate", None)
    assert (config.quant.softmax_bits, config.recon.batch, config.quantizer.steps["split"]["scope"]) == (16, 8, "skip")
    assert [config.quantizer.steps[slot]["iterations"] for slot in ("weights", "scales")] == [20_000, 5_000]
