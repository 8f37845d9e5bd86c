"""What each form of the command yields: the table of the documentation, and what is refused."""

import json
import re
import shlex
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest

from qdexp.cell import Cell
from qdexp.layout import Layout
from qdexp.sweep import launch

Command = Callable[..., tuple[int, str, str]]

PAGE = Path(__file__).parents[1] / "docs" / "sweeps.md"


def table() -> list[tuple[str, list[str]]]:
    """The rows of the table: arguments, and the labels of the cells that they yield."""
    section = PAGE.read_text().split("## Which cells a command runs")[1].split("\n\n")[2]
    rows = [[cell.strip() for cell in row.strip("|").split("|")] for row in section.splitlines()[2:]]
    return [("" if given == "(nothing)" else given.strip("`"), re.findall("`(.+?)`", cells)) for given, cells in rows]


TABLE = table()


@pytest.fixture
def yields(qdexp: Command, cell_of: Callable[..., Cell], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """The labels of the cells that a command comes to; of a sweep as its launcher gets them, before any work."""

    def labels(*arguments: str) -> list[str]:
        if "-m" not in arguments:
            return [cell_of(*arguments).label]
        seen: list[str] = []
        monkeypatch.setattr(launch, "dry", lambda cells, _: seen.extend(cell.title for cell in cells))
        code, _, err = qdexp(*arguments, "hydra.launcher.dry=true")
        assert (code, err) == (0, "")
        return seen

    return labels


def cells(stdout: str) -> list[str]:
    """The labels of the cells that a command ended in, in their order, read from their records."""
    paths = [line.split(maxsplit=1)[1] for line in stdout.splitlines() if line.startswith("record ")]
    records = [json.loads(Path(path).read_text()) for path in paths]
    assert all(record["status"] == "complete" for record in records)
    axes = [record["axes"] for record in records]
    return [own["method"] if own["method"] == "fp" else f"{own['method']} {own['quant']}" for own in axes]


def test_seeds_are_told_apart_wherever_cells_are_listed(
    qdexp: Command, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def write(cells: Sequence[Cell], _: bool) -> None:
        launch.Frozen(cells).write()

    monkeypatch.setattr(launch, "dry", write)
    assert qdexp("-m", "method=ptq", "seed=0,1", "hydra.launcher.dry=true")[0] == 0
    folder, labels = Layout(tmp_path / "out").sweep("trial"), ["ptq w4a8 seed=0", "ptq w4a8 seed=1"]
    assert [cell["label"] for cell in json.loads(folder.cells.read_text()).values()] == labels
    assert [cell["label"] for cell in json.loads(folder.manifest.read_text())["cells"].values()] == labels


@pytest.mark.parametrize(("arguments", "expected"), TABLE, ids=[row[0] or "(nothing)" for row in TABLE])
def test_what_each_command_yields(yields: Callable[..., list[str]], arguments: str, expected: list[str]) -> None:
    assert yields(*shlex.split(arguments)) == expected


def test_a_sweep_ends_in_a_table_and_a_picture(qdexp: Command, tmp_path: Path) -> None:
    code, out, _ = qdexp("-m", "method=fp,ptq")
    assert code == 0
    assert "sweep trial: 2 cells, 27 stages, 0 of them in" in out
    folder = tmp_path / "out" / "sweeps" / "trial"
    assert {path.name for path in folder.iterdir() if path.is_file()} == {"cells.json", "table.md", "samples.png"}
    rows = [line for line in (folder / "table.md").read_text().splitlines() if line.startswith("| ")]
    assert any(row.startswith("| fp ") for row in rows)
    assert any(row.startswith("| ptq ") for row in rows)
    _, again, _ = qdexp("-m", "method=fp,ptq")
    assert "sweep trial: 2 cells, 27 stages, 27 of them in" in again


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ("method=ptq calib=uniform", ("calib=uniform", "method=ptq")),
        ("method=fp quantizer=linear", ("quantizer=linear", "method=fp")),
        ("method=ptq quantizer=linear", ("quantizer=linear", "method=ptq")),
        ("-m method=ptq,timestep_aware calib=last", ("calib=last", "method=timestep_aware")),
        ("-m experiment=calibration method=ptq", ("quantizer=linear", "method=ptq")),
    ],
)
def test_a_choice_that_contradicts_the_method(qdexp: Command, tmp_path: Path, arguments: str, named: tuple[str, str]) -> None:
    code, _, err = qdexp(*arguments.split())
    assert code == 1
    assert err.startswith("qdexp: ")
    assert all(name in err for name in named)
    assert not (tmp_path / "out" / "store").exists()


def test_a_method_of_ones_own_is_held_to_its_parts(qdexp: Command, own_conf: Path, tmp_path: Path) -> None:
    conf = tmp_path / "more"
    (conf / "method").mkdir(parents=True)
    (conf / "method" / "late.yaml").write_text("# @package _global_\ndefaults:\n  - override /calib: last\nmethod: late\n")
    path = f"hydra.searchpath=[file://{own_conf},file://{conf}]"
    code, out, _ = qdexp(path, "method=late", "quantizer=search")
    assert code == 0
    assert cells(out) == ["late w4a8"]
    code, _, err = qdexp(path, "method=late", "calib=first")
    assert code == 1
    assert "calib=first" in err
    assert "method=late fixes calib=last" in err


@pytest.mark.parametrize(
    "arguments",
    ["quant.weight_bits=8,4,99", "calib.timesteps=2,5", "method=ptq calib.rows=4,17", "sampling.batch=8,0", "calib=last,none"],
)
def test_a_bad_cell_late_in_the_sweep_stops_it_before_any_work(qdexp: Command, tmp_path: Path, arguments: str) -> None:
    code, out, err = qdexp("-m", *arguments.split())
    assert (code, out) == (1, "")
    assert err.startswith("qdexp: ")
    assert list((tmp_path / "out").glob("*")) == []


def test_all_cells_of_a_sweep_carry_one_name(qdexp: Command, tmp_path: Path) -> None:
    code, _, err = qdexp("-m", "method=fp,ptq", "sweep=${now:%H-%M-%S-%f}")
    assert (code, err) == (0, "")
    records = [json.loads(path.read_text()) for path in (tmp_path / "out" / "records").iterdir()]
    assert len(records) == 2
    assert len({record["config"]["sweep"] for record in records}) == 1


def test_values_below_a_group_leave_the_ladder_as_it_is(yields: Callable[..., list[str]]) -> None:
    expected = ["fp", "ptq w4a8", "timestep_aware w4a8", "reconstruction w4a8", "qdiffusion w4a8"]
    assert yields("-m", "quantizer.steps.act.rows=4") == expected


@pytest.mark.parametrize("arguments", ["experiment=calibration", "-m experiment=calibration,calibration"])
def test_a_study_is_one_sweep(qdexp: Command, tmp_path: Path, arguments: str) -> None:
    code, _, err = qdexp(*arguments.split())
    assert code == 1
    assert err.startswith("qdexp: experiment=calibration")
    assert not (tmp_path / "out" / "store").exists()


def test_weights_that_do_not_fit_are_found_before_any_work(qdexp: Command, tmp_path: Path) -> None:
    code, _, err = qdexp("model.network.block_out_channels=[8,16]")
    assert code == 1
    assert err.startswith("qdexp: model.weights=")
    assert "does not fit model.network" in err
    assert not (tmp_path / "out" / "store").exists()
