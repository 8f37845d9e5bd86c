"""Backends: which one a cell or a call names, whose keys it is in, and what is computed with it."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from backend_helpers import Scaled

import qdexp
from qdexp.backends import Simulated, choice
from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.paths import conf_folder
from qdexp.stages import keys
from qdexp.stages.keys import targets

CellOf = Callable[..., Cell]
APART = {
    *("trajectory", "calibration", "weights", "act", "coverage", "heldout", "full_precision"),
    *("quantized", "sizes"),
}
"""What does not run the quantized network."""
SCALED = "backend._target_=backend_helpers.Scaled"


def changed(one: Cell, other: Cell) -> set[str]:
    return {role for role, stage in one.stages.items() if other.stages[role].key != stage.key}


def test_all_that_computes_with_the_quantized_network_depends_on_the_backend_and_nothing_else_does(cell_of: CellOf) -> None:
    base, scaled = cell_of("inspection.rows=4"), cell_of("inspection.rows=4", SCALED)
    assert base.stages.keys() - changed(base, scaled) == {*APART, "activations"}
    assert changed(base, scaled) >= {"samples", "curves", "layers", "fid", "distance", "noise_error"}
    assert changed(scaled, cell_of("inspection.rows=4", SCALED, "backend.factor=3")) == changed(base, scaled)
    assert changed(scaled, cell_of("inspection.rows=4", SCALED, "backend.factor=2")) == set()
    assert changed(scaled, cell_of("inspection.rows=4", SCALED, "backend.name=other")) == set()
    assert cell_of("method=fp").key == cell_of("method=fp", SCALED).key


def test_the_code_of_a_backend_counts_and_travels_with_what_runs_it(cell_of: CellOf, monkeypatch: pytest.MonkeyPatch) -> None:
    base = cell_of(SCALED)
    _ = base.keys
    assert {role for role, stage in base.stages.items() if "backend_helpers.Scaled" in targets(stage)} == {"samples", "curves"}
    digest = keys.code_of
    monkeypatch.setattr(keys, "code_of", lambda target: "other" if target.startswith("backend_h") else digest(target))
    assert base.stages.keys() - changed(base, cell_of(SCALED)) == APART


def test_files_of_a_backend_count_by_content(cell_of: CellOf, tmp_path: Path) -> None:
    options = ("backend._target_=backend_helpers.Filed", f"backend.table={tmp_path}/table")
    with pytest.raises(UserError, match=rf"^backend.table={tmp_path}/table: no such file$"):
        cell_of(*options)
    (tmp_path / "table").write_text("1")
    base = cell_of(*options)
    assert base.files["table"]["path"] == str(tmp_path / "table")
    before = dict(base.keys)
    (tmp_path / "table").write_text("22")
    assert {role for role, key in cell_of(*options).keys.items() if key == before[role]} == APART


MISTAKES = {
    "backend._target_=backend_helpers.Nonesuch": "cannot be imported",
    "backend._target_=qdexp.backends.Simulate": "did you mean qdexp.backends.Simulated?",
    "backend._target_=qdexp.backends.Backend": "name a subclass of qdexp.backends.Backend",
    "backend._target_=torch.nn.Linear": "name a subclass of qdexp.backends.Backend",
    "backend.speed=3": "backend.speed: there is no such option; there are none",
    "backend.name=3": "backend.name",
    f"{SCALED} backend.facter=3": "backend.facter: there is no such option, did you mean factor?",
    f"{SCALED} backend.factor=0": "backend.factor=0",
    f"{SCALED} backend.factor=many": "backend.factor=many",
    f"{SCALED} backend.factor=13": "backend.factor=13.0: brings bad luck; choose another one",
}


@pytest.mark.parametrize(("options", "told"), MISTAKES.items())
def test_a_mistake_is_one_line_before_any_work(cell_of: CellOf, options: str, told: str) -> None:
    with pytest.raises(UserError) as caught:
        cell_of(*options.split())
    text = str(caught.value)
    assert told in text
    assert text.startswith("backend.")
    assert "\n" not in text


def test_the_cell_runs_what_the_backend_makes(cell_of: CellOf, capsys: pytest.CaptureFixture[str]) -> None:
    cell = cell_of(SCALED, "backend.name=scaled", "inspection.rows=4")
    record = cell.run()
    assert "left to simulated arithmetic, too small: conv_in, conv_out" in capsys.readouterr().out
    assert record["axes"]["backend"] == "scaled"
    forced = record["curves"]["teacher_forced"]
    assert all(0.5 < error < 2 for error in forced)  # about twice the noise: |2 eps - eps|^2 / |eps|^2
    plain = cell_of("inspection.rows=4", f"out={cell.out}")
    other = plain.run()
    assert other["keys"]["act"] == record["keys"]["act"]
    assert other["metrics"]["noise_error"] < 0.1 < record["metrics"]["noise_error"]


def test_full_precision_has_none(finished: CellOf) -> None:
    assert json.loads(finished("method=fp").record.read_text())["axes"]["backend"] == "none"


def test_simulated_is_the_network_itself() -> None:
    network = torch.nn.Linear(2, 2)
    lowered = Simulated().lower(network)
    assert lowered.network is network
    assert not lowered.left


def test_loading_takes_a_name_or_a_backend(finished: CellOf) -> None:
    cell = finished()
    record = json.loads(cell.record.read_text())
    folder = cell.out / record["artifacts"]["checkpoint"]
    x, t = torch.randn(2, 1, 28, 28), torch.tensor([3, 500])
    with torch.inference_mode():
        outputs: list[Any] = [
            qdexp.load(folder, **given)(x, t).sample
            for given in ({}, {"backend": "simulated"}, {"backend": Simulated()}, {"backend": Scaled(factor=3)})
        ]
    assert all(torch.equal(one, outputs[0]) for one in outputs[:3])
    torch.testing.assert_close(outputs[3], 3 * outputs[0])


def test_an_unknown_name_is_answered_by_what_there_is(tmp_path: Path) -> None:
    with pytest.raises(UserError) as caught:
        qdexp.load(tmp_path, backend="int3")
    assert str(caught.value).startswith("backend=int3: there is no such backend; there are int8, simulated")
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("path", sorted((conf_folder() / "backend").glob("*.yaml")), ids=lambda path: path.stem)
def test_every_file_is_a_backend_of_its_name(cell_of: CellOf, path: Path) -> None:
    assert cell_of(f"backend={path.stem}").config.backend["name"] == path.stem
    assert choice.named(path.stem)
