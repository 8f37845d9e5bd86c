"""The launchers of one machine, and cells one by one."""

import json
import re
from collections.abc import Callable, Sequence
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir

from qdexp import device as devices
from qdexp.errors import UserError
from qdexp.footprint import places
from qdexp.paths import conf_folder
from qdexp.sweep import launch
from qdexp.sweep.__main__ import main as sweep_command
from qdexp.sweep.freeze import Composer, freeze
from qdexp.sweep.jobs import Node
from qdexp.sweep.local import Local

Command = Callable[..., tuple[int, str, str]]
Executed = Callable[..., list[str]]
PASSING = (
    r"\.locks/|\.work-|/shells/|\.(corrupt|pruning|returning|pruned)-|-TIME-|jobs/\.|\.error\.|^(reports|exports)/|^\.?wandb"
)
"""What a sweep without mishaps, report and tracker leaves none of."""


def test_configs_composed_once_are_those_that_hydra_composes(small: list[str]) -> None:
    composed: list[list[str]] = []

    def by_hydra(overrides: list[str]) -> object:
        composed.append(overrides)
        return compose("config", overrides, return_hydra_config=True)

    points = [
        [*small, f"method={method}", f"seed={seed}", f"++quantizer.steps.split.scope={split}", f"calib.rows={rows}", layers]
        for method in ("ptq", "qdiffusion")
        for seed, rows in ((0, 4), (7, 5), (0, 5))
        for split in ("skip", "off")
        for layers in ("quant.layers={conv_in: {weight_bits: 8}}", "quant.layers={conv_out: {weight_bits: 3}}")
    ]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composer = Composer(by_hydra)  # type: ignore[arg-type]
        for point in points:
            assert composer.config(point) == freeze(compose("config", point, return_hydra_config=True))
    assert len(composed) == 4  # methods x layers: mappings are left to Hydra


def test_a_value_that_others_are_taken_from_and_mistakes_are_as_hydra_has_them(small: list[str]) -> None:
    def by_hydra(overrides: list[str]) -> object:
        return compose("config", overrides, return_hydra_config=True)

    reading = [*small, "calib.rows=${seed}"]
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        composer = Composer(by_hydra)  # type: ignore[arg-type]
        configs = [composer.config([*given, f"seed={seed}"]) for given in (small, reading) for seed in (4, 5)]
        assert [(config.seed, config.calib.rows) for config in configs] == [(4, 4), (5, 4), (4, 4), (5, 5)]
        assert configs[0].model is configs[1].model is configs[3].model, "what is equal is there once"
        with pytest.raises(UserError) as alone:
            composer.config([*small, "seed=-1"])
        with pytest.raises(UserError) as both:
            composer.config([*small, "seed=-1", "calib.rows=0"])
    assert str(alone.value).startswith("seed=-1: ")
    assert [line.partition(":")[0] for line in str(both.value).splitlines()] == ["calib.rows=0", "seed=-1"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ((), None),
        (("hydra.launcher.jobs=3",), r"hydra\.launcher\.jobs=3: the GPUs here take 2; .*hydra\.launcher\.jobs_per_gpu"),
        (("hydra.launcher.jobs=3", "hydra.launcher.jobs_per_gpu=2"), None),
        (("hydra.launcher.jobs_per_gpu=0",), r"hydra\.launcher\.jobs_per_gpu=0: choose at least 1"),
    ],
)
def test_the_jobs_that_gpus_take(
    qdexp: Command, options: tuple[str, ...], message: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    taken: list[tuple[int, list[str]]] = []

    class Seen(Local):
        def run(self, nodes: Sequence[Node]) -> None:
            taken.append((self.jobs, list(self._free)))
            raise KeyboardInterrupt

    monkeypatch.setattr(launch, "Local", Seen)
    monkeypatch.setattr(devices, "visible", lambda: ["0", "1"])
    monkeypatch.setattr(places, "free_on_gpus", lambda: 80 * 10**9)
    with devices.elsewhere("cuda"):
        code, _, err = qdexp("-m", "method=fp", "hydra/launcher=local", "device=cuda", *options)
    assert code != 0
    if message is None:
        assert taken == [(3 if options else 2, ["0", "1"] * (2 if options else 1))]
    else:
        assert re.search(message, err)


def test_several_processes_at_once(
    qdexp: Command, executed: Executed, drawn: dict[str, re.Pattern[str]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    command = ("-m", "method=fp", "hydra/launcher=local", "cluster.parts=2")
    code, out, err = qdexp(*command)
    assert (code, err) == (0, "")
    (path,) = re.findall(r"^record +(.*)$", out, flags=re.MULTILINE)
    record = json.loads(Path(path).read_text())
    assert record["status"] == "complete"
    listed = json.loads((tmp_path / "out" / "sweeps" / "trial" / "cells.json").read_text())
    assert list(listed) == [record["cell"]]  # a report finds the sweep by it
    made = executed()
    assert [entry.rpartition("-")[0] for entry in made[:3]] == ["samples", "size", "features"]
    assert f"{len(made)} stages, {len(made)} of them in" in qdexp(*command)[1]
    assert executed() == made
    sweep_command(["status", "--out", str(tmp_path / "out")])
    left = [path.relative_to(tmp_path / "out").as_posix() for path in (tmp_path / "out").rglob("*") if path.is_file()]
    assert [path for path in left if not any(pattern.fullmatch(path) for pattern in drawn.values())] == []
    missing = {line for line, pattern in drawn.items() if not any(map(pattern.fullmatch, left))}
    assert missing == {line for line in drawn if re.search(PASSING, line)}
    assert qdexp("-m", "method=fp", f"out={tmp_path / 'alone'}")[0] == 0
    alone = json.loads((tmp_path / "alone" / "records" / Path(path).name).read_text())
    assert {name: alone[name] for name in ("metrics", "keys")} == {name: record[name] for name in ("metrics", "keys")}


def test_a_torn_manifest_is_named(tmp_path: Path) -> None:
    manifest = tmp_path / "sweeps" / "trial" / "manifest.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text('{"format": 1, "sw')
    manifest.with_name("cells.json").write_text("{}")
    with pytest.raises(UserError, match=r"manifest\.json is truncated, or no manifest \(.*\): delete it and submit"):
        sweep_command(["status", "--out", str(tmp_path)])


def test_a_word_that_is_no_command_gets_all_of_them(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        sweep_command(["plna"])
    assert re.search("plan.*status.*collect.*logs.*cancel", capsys.readouterr().err)


def test_plan_does_nothing(qdexp: Command, tmp_path: Path) -> None:
    code, out, err = qdexp("-m", "method=fp,ptq", "hydra.launcher.dry=true")
    assert (code, err) == (0, "")
    assert "2 cells, 0 of them complete; 27 stages, 0 of them in" in out
    assert re.search(r"about \d+ s of computing, a guess by a batch that the network was given just now;", out)
    assert not list((tmp_path / "out").glob("*"))
    assert qdexp("method=ptq")[0] == 0
    _, out, _ = qdexp("-m", "method=fp,ptq", "hydra.launcher.dry=true")
    assert "1 of them complete; 27 stages, 19 of them in" in out
    assert re.search(r"about \d+ s of computing, a guess by 1 earlier record[,;]", out)


@pytest.mark.parametrize(
    ("options", "labels"),
    [
        (['hydra.sweeper.cells=["method=fp","method=ptq quant=w8a8"]'], ["fp", "ptq w8a8"]),
        (['hydra.sweeper.cells=["method=ptq","quantizer=linear calib=last"]', "quant=w8a8,w4a8"],
         ["ptq w8a8", "ptq w4a8", "linear-last w8a8", "linear-last w4a8"]),
        (["method=fp,ptq,timestep_aware", "quant=w8a8,w4a8", 'hydra.sweeper.exclude=["method=ptq quant=w4a8","method=fp"]'],
         ["ptq w8a8", "timestep_aware w8a8", "timestep_aware w4a8"]),
        (['hydra.sweeper.exclude=["method=qdiffusion","method=reconstruction"]'], ["fp", "ptq w4a8", "timestep_aware w4a8"]),
    ],
)  # fmt: skip
def test_cells_one_by_one_and_exclusions(qdexp: Command, tmp_path: Path, options: list[str], labels: list[str]) -> None:
    from qdexp.sweep import launch

    seen: list[str] = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(launch, "dry", lambda cells, _: seen.extend(cell.title for cell in cells))
        code, _, err = qdexp("-m", *options, "hydra.launcher.dry=true")
    assert (code, err) == (0, "")
    assert seen == labels


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (['hydra.sweeper.exclude=["quant=w2a2"]'], "hydra.sweeper.exclude=quant=w2a2: no cell"),
        (["method=ptq", 'hydra.sweeper.exclude=["method=ptq"]'], "leaves no cell"),
        (['hydra.sweeper.cells=["method=ptq"]', "method=fp"], "method is named beside the list too"),
        (["hydra/launcher=local", "hydra.launcher.jobs=0"], "qdexp: hydra.launcher.jobs=0: choose"),
        (["hydra/launcher=local", "+cluster.stages.roundign.minutes=50"], "cluster.stages.roundign: no stage is called so"),
        (["hydra/launcher=slurm", "seed=0,1", "out=a,b"], "out: one sweep has one out"),
        (["cluster.parts=0"], "cluster.parts=0"),
        (["cluster.device=tpu"], "cluster.device=tpu"),
    ],
)
def test_mistakes(qdexp: Command, tmp_path: Path, options: list[str], named: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = qdexp("-m", *options)
    assert (code, out) == (1, "")
    assert err.startswith("qdexp: ")
    assert named in err
    assert "\n" not in err
