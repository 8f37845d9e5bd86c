"""The scripts in analysis/, on records of tiny cells."""

import copy
import json
import runpy
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from qdexp import files
from qdexp.cell import Cell
from qdexp.report.evidence import Evidence
from qdexp.statistics.estimate import Estimate, of_mean, over_seeds

pytestmark = pytest.mark.slow  # two sweeps of tiny cells: a minute
SCRIPTS = Path(__file__).parents[2] / "analysis"
YAML = """\
defaults: [tiny, _self_]
name: bimodal
network: {_target_: qdexp.models.bimodal.BimodalUNet2DModel, deep_gain: 1}
"""
STUDY = ("model=bimodal", "model.network.deep_gain=1,64", "quant=w32a8,w4a8", "protocol.n=10", "calib.rows=4")

Record = dict[str, Any]
Script = Callable[..., str]
Points = dict[tuple[str, str, int], float]


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable[..., str]:
    """``run(script, *arguments)``: what ``python analysis/SCRIPT ...`` prints, without a new process."""

    def printed(script: str, *arguments: str | Path) -> str:
        monkeypatch.setattr(sys, "argv", [script, *map(str, arguments)])
        monkeypatch.syspath_prepend(SCRIPTS)
        capsys.readouterr()
        runpy.run_path(str(SCRIPTS / script), run_name="__main__")
        return capsys.readouterr().out

    return printed


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("study")


@pytest.fixture
def study(qdexp: Callable[..., tuple[int, str, str]], own_conf: Path, folder: Path) -> list[Path]:
    """Records of the named study on the tiny model: two gains, two bit-widths, with and without split shortcut. Run once."""
    conf, records = folder / "conf", folder / "out" / "records"
    if records.exists():
        return sorted(records.iterdir())
    (conf / "model").mkdir(parents=True)
    (conf / "model" / "bimodal.yaml").write_text(YAML)
    path = f"hydra.searchpath=[file://{own_conf},file://{conf}]"
    code, _, err = qdexp("-m", path, "experiment=shortcut_modes", *STUDY, f"out={folder / 'out'}")
    assert code == 0, err
    return sorted(records.iterdir())


def scope_of(record: Record) -> str:
    return str(record["config"]["quantizer"]["steps"]["split"]["scope"])


def points(records: Sequence[Path]) -> Points:
    """(bits, split, gain) -> error."""
    found: Points = {}
    for record in (json.loads(path.read_text()) for path in records):
        gain, scope = record["config"]["model"]["network"]["deep_gain"], scope_of(record)
        found[record["axes"]["quant"], scope, gain] = record["metrics"]["noise_error"]
    return found


def rows(markdown: str) -> list[list[str]]:
    """The cells of a Markdown table's lines, without the rule."""
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in markdown.splitlines()]
    return [line for line in lines if not set("".join(line)) <= set("-:")]


def test_a_split_shortcut_does_not_care_how_bimodal_it_is(study: list[Path]) -> None:
    errors = points(study)
    assert len(errors) == 8
    for quant in ("w32a8", "w4a8"):
        assert errors[quant, "off", 64] > 3 * errors[quant, "off", 1]
        assert errors[quant, "skip", 64] == pytest.approx(errors[quant, "skip", 1], rel=0.1)


def test_the_table_of_shortcut_modes_says_what_the_records_say(run: Script, study: list[Path], tmp_path: Path) -> None:
    figure = tmp_path / "modes.png"
    header, *body = rows(run("shortcut_modes.py", *study, "--out", figure))
    assert figure.read_bytes().startswith(b"\x89PNG")
    assert [row[0] for row in body] == ["1", "64"]
    columns = [name.lower().split() for name in header[1:]]
    shown = {(quant, split, int(row[0])): text for row in body for (quant, split), text in zip(columns, row[1:], strict=True)}
    assert shown == {point: f"{error:.3g}" for point, error in points(study).items()}


def test_records_of_two_studies_are_not_drawn_as_one(run: Script, study: list[Path], tmp_path: Path) -> None:
    changed = files.read_sealed(study[0])
    changed["files"]["weights"]["sha256"] = "0" * 64
    files.write_sealed(tmp_path / "changed.json", changed)
    for others, what in (([study[0]], "differs"), ([tmp_path / "changed.json"], "differ in weights too")):
        with pytest.raises(SystemExit, match=rf"^qdexp: .*{what}.* give one study's"):
            run("shortcut_modes.py", study[0], *others, "--out", tmp_path / "modes.png")
    assert not (tmp_path / "modes.png").exists()


def test_ranges_of_shortcuts_are_a_gain_apart(run: Script, study: list[Path]) -> None:
    ratios: dict[int, list[list[str]]] = {}
    for path in study:
        record: Record = json.loads(path.read_text())
        if scope_of(record) == "skip" and record["axes"]["quant"] == "w32a8":
            header, *ratios[record["config"]["model"]["network"]["deep_gain"]] = rows(run("shortcut_ranges.py", path))
            assert header == ["layer", "input, deep", "input, skip", "deep / skip", "weights, deep / skip"]
    names = [row[0] for row in ratios[1]]
    assert names == [f"up_blocks.{level}.resnets.{index}.conv_shortcut" for level in (0, 1) for index in (0, 1)]
    for one, other in zip(ratios[1], ratios[64], strict=True):
        assert float(other[3]) == pytest.approx(64 * float(one[3]), rel=0.05)
        assert float(other[4]) == pytest.approx(float(one[4]) / 64, abs=0.006)


def test_error_curves(run: Script, study: list[Path], tmp_path: Path) -> None:
    assert run("error_curves.py", *study, "--out", tmp_path / "curves.png") == ""
    assert (tmp_path / "curves.png").read_bytes().startswith(b"\x89PNG")


def test_the_worst_layers_and_timesteps(run: Script, study: list[Path], finished: Callable[..., Cell]) -> None:
    cell = finished("method=timestep_aware", "inspection.rows=4")
    (path,) = (cell.out / "records").iterdir()
    record, evidence = json.loads(path.read_text()), Evidence(cell.out)
    blocks = run("worst.py", path, "--most", "3").strip().split("\n\n")
    assert blocks[0].startswith("## timestep_aware W4A8")
    (_, *layers), (_, *timesteps) = map(rows, blocks[1:])
    found = sorted(evidence.read_json(record, "layers"), key=lambda layer: -layer["sensitivity"])
    assert [row[0] for row in layers] == [layer["name"] for layer in found[:3]]
    whole = sum(layer["sensitivity"] for layer in found)
    assert float(layers[0][3]) == pytest.approx(100 * found[0]["sensitivity"] / whole, abs=0.06)
    curves = record["curves"]
    worst = max(range(len(curves["timestep"])), key=lambda step: curves["teacher_forced"][step])
    assert (len(timesteps), timesteps[0][0]) == (3, str(curves["timestep"][worst]))
    assert float(timesteps[0][1]) == pytest.approx(1e3 * curves["teacher_forced"][worst], rel=0.01)
    assert "inspection.rows=16" in run("worst.py", *study), "the study looked at no layer"


@pytest.mark.parametrize(
    "script", ["error_curves.py", "gaps.py", "reconstruction.py", "reported.py", "shortcut_modes.py", "shortcut_ranges.py"]
)
def test_a_torn_record_is_one_line(run: Script, script: str, tmp_path: Path) -> None:
    (tmp_path / "torn.json").write_text('{"format": 1')
    drawn = ["--out", tmp_path / "x.png"] if script in ("error_curves.py", "shortcut_modes.py") else []
    with pytest.raises(
        SystemExit,
        match=r"^qdexp: \S+torn\.json is truncated, or not what was written .*run the sweep again$",
    ):
        run(script, tmp_path / "torn.json", *drawn)


@pytest.fixture
def seeds(qdexp: Callable[..., tuple[int, str, str]], folder: Path) -> list[Path]:
    """Records of the ladder over two seeds, and of quantized activations alone. Run once."""
    records = folder / "seeds" / "records"
    if not records.exists():
        for arguments in (["seed=0,1"], ["seed=0,1", "method=timestep_aware", "quant=w32a8"]):
            code, _, err = qdexp("-m", *arguments, f"out={folder / 'seeds'}")
            assert code == 0, err
    return sorted(records.iterdir())


def test_gaps_are_those_of_the_records(run: Script, seeds: list[Path]) -> None:
    cells = {
        (axes["method"], axes["quant"], axes["seed"]): record["metrics"]
        for record in (json.loads(path.read_text()) for path in seeds)
        for axes in [record["axes"]]
    }
    _, *body = rows(run("gaps.py", *seeds))
    assert [row[0] for row in body] == ["timestep_aware", "reconstruction", "qdiffusion"]
    for method, error, *_ in body:
        mean = sum(cells[method, "w4a8", seed]["noise_error"] for seed in (0, 1)) / 2
        assert float(error.split()[0]) == pytest.approx(1e6 * mean, abs=0.6)
    nearest, alone = ([cells["timestep_aware", bits, seed]["noise_error"] for seed in (0, 1)] for bits in ("w4a8", "w32a8"))
    assert min(nearest) > max(alone)
    assert body[0][2] in ("0.0 [0.0, 0.0]", "-")  # nearest rounding closes nothing of its own gap


def test_a_share_is_claimed_only_of_a_gap_that_is_there(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(SCRIPTS)
    gaps = runpy.run_path(str(SCRIPTS / "gaps.py"))
    assert gaps["written"](gaps["share"]([3.0, 3.2, 2.8], [1.5, 1.6, 1.4], [1.0, 1.2, 0.8]), 1).startswith("75.0 [")
    assert gaps["share"]([3.0, 3.2, 2.8], [1.5, 1.6, 1.4], [2.9, 3.4, 2.6]) is None
    assert gaps["written"](over_seeds([1.0, 2.0, 3.0]), 3) == "2.000 [-0.484, 4.484]"  # 2 +- 4.302653 / sqrt(3)

    def fids(value: float, seeds: int) -> list[Estimate]:
        images = np.random.default_rng(0).standard_normal(320)  # the same images for all
        return [of_mean(value + 0.1 * seed + value * images / 100) for seed in range(seeds)]

    closed = gaps["share_of_fid"](fids(9.0, 3), fids(3.0, 3), fids(1.0, 3))
    assert closed.value == pytest.approx(75, abs=0.1)
    assert closed.low < 75 < closed.high
    assert gaps["share_of_fid"](fids(1.0, 3), fids(1.0, 3), fids(1.0, 3)) is None


def test_gaps_are_of_one_network_and_of_one_configuration(run: Script, seeds: list[Path], tmp_path: Path) -> None:
    records = [files.read_sealed(path) for path in seeds]
    network, other = copy.deepcopy(records), copy.deepcopy(records)
    for record in network:
        if record["axes"]["seed"] == 1:  # as if the weights file had been exchanged before the second seed
            record["keys"] = {stage: f"other{key[5:]}" for stage, key in record["keys"].items()}
            record["files"]["weights"]["sha256"] = "0" * 64
            record["identity"] += "other"
    next(record for record in other if record["axes"]["method"] == "ptq")["identity"] = "by other code"
    for name, changed, message in (
        ("network", network, r"the records are of several networks \(.*weights=00000000.*\): give those of one"),
        ("other", other, r"ptq .* is not the only ptq w4a8: give the records of one configuration"),
    ):
        (tmp_path / name).mkdir()
        for record in changed:
            files.write_sealed(tmp_path / name / f"{record['cell']}.json", record)
        with pytest.raises(SystemExit, match=f"^qdexp: {message}"):
            run("gaps.py", *sorted((tmp_path / name).iterdir()))


def test_the_table_of_reconstruction(run: Script, seeds: list[Path]) -> None:
    header, *body = rows(run("reconstruction.py", *seeds))
    assert header[:4] == ["cell", "start", "iterations", "rate"]
    assert len(body) == 4  # reconstruction and qdiffusion, two seeds: what learns nothing is left out
    record = next(record for path in seeds if (record := json.loads(path.read_text()))["axes"]["method"] == "qdiffusion")
    blocks = record["reconstruction"]["weights"]
    ratios = [new / old for old, new, kept in zip(blocks["before"], blocks["learned"], blocks["kept"], strict=True) if kept]
    ratios += [1.0] * blocks["kept"].count(False)
    mean = torch.tensor(ratios).log().mean().exp()
    error = torch.tensor([min(pair) for pair in zip(blocks["before"], blocks["learned"], strict=True)]).log().mean().exp()
    assert any(row[4:6] == [f"{error:.3g}", f"{mean:.3f} ({max(ratios):.3f})"] for row in body)


def test_a_coverage_of_nothing_is_refused(run: Script, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        run("coverage.py", "--repetitions", "0")
    assert "--repetitions and --variants must be at least 1" in capsys.readouterr().err


@pytest.mark.slow
def test_the_coverage_of_intervals(run: Script) -> None:
    body = rows(run("coverage.py", "--repetitions", "2", "--variants", "1", "--n", "200"))[2:]  # after the title and the header
    assert len(body) == 16
    truths = {name: float(truth) for name, truth, *_ in body}
    assert truths["FID difference, noise"] > 0.5 > truths["FID difference, 8 grey levels"]
    assert all(float(half) > 0 and float(share) in (0, 50, 100) for _, _, half, share in body)
