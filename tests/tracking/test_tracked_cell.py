import json
from collections.abc import Callable
from pathlib import Path

import pytest

from qdexp.tracking.log import read
from qdexp.tracking.sync import check


def test_a_cell_and_its_run_agree(qdexp: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    code, _, err = qdexp("method=ptq", "tracker=wandb", "tracker.project=trials", "inspection.rows=4")
    assert (code, err) == (0, "")
    (path,) = (tmp_path / "out" / "records").iterdir()
    record = json.loads(path.read_text())
    (log,) = (tmp_path / "out").glob("wandb/offline-run-*/*.wandb")
    run = read(log)
    assert (run.run.project, run.run.run_group, run.run.display_name) == ("trials", "trial", record["cell"])
    assert run.exit_code == 0
    assert {name: run.summary[name] for name in record["metrics"]} == record["metrics"]
    assert run.summary["total_seconds"] == record["costs"]["total"]["seconds"]
    assert run.config["record"]["config"] == record["config"]
    assert run.config["record"]["keys"] == record["keys"]
    forced = [row["curves/teacher_forced"] for row in run.history if "curves/teacher_forced" in row]
    assert forced == pytest.approx(record["curves"]["teacher_forced"])
    names = [artifact.name for artifact in run.artifacts if artifact.type == "checkpoint"]
    assert names == [f"checkpoint-{record['keys']['act']}"]
    assert check(log.parent).problems == []
    assert any("samples.path" in row for row in run.history)
    (table,) = (row for row in run.history if "layers.path" in row)
    shown = json.loads((log.parent / "files" / table["layers.path"]).read_text())
    layers = json.loads((tmp_path / "out" / "store" / f"layers-{record['keys']['layers']}" / "layers.json").read_text())
    assert [dict(zip(shown["columns"], row, strict=True)) for row in shown["data"]] == layers


def test_a_tracker_that_fails_takes_nothing_with_it(qdexp: Callable[..., tuple[int, str, str]], tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "wandb").write_text("no folder")
    code, out, _ = qdexp("method=fp", "tracker=wandb")
    assert code == 0
    assert "warning: W&B run of tiny-fp" in out
    assert json.loads(next((tmp_path / "out" / "records").iterdir()).read_text())["status"] == "complete"
