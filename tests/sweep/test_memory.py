"""The memory of a sweep: what is told of it, what is refused before any work, and what is said where it still runs out."""

import re
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch

from qdexp import device as devices
from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.footprint import places
from qdexp.footprint.needs import Need, Part, need_of, total
from qdexp.footprint.places import Here, OnCluster, Room, Share, free_on_gpus
from qdexp.footprint.room import misfits
from qdexp.methods import LearnScales
from qdexp.record import read
from qdexp.stages.trajectory import TrajectoryStage
from qdexp.store import Store
from qdexp.sweep import memory
from qdexp.sweep.__main__ import main as sweep_command

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]
CPU, CUDA = torch.device("cpu"), torch.device("cuda")


@pytest.fixture
def planned_on() -> Iterator[Callable[[str], None]]:
    """``planned_on(device)``: from then on cells are those of a cluster with such machines."""
    contexts: list[Any] = []

    def begin(device: str) -> None:
        contexts.append(devices.elsewhere(device))
        contexts[-1].__enter__()

    yield begin
    for one in reversed(contexts):
        one.__exit__(None, None, None)


@pytest.fixture
def full_machine(monkeypatch: pytest.MonkeyPatch) -> Callable[[float], None]:
    """``full_machine(GB)``: from then on there are so many free here."""
    return lambda free: monkeypatch.setattr(places, "free_host", lambda: int(free * 1e9))


def test_every_stage_of_a_cell_is_known_or_said_not_to_be(cell_of: CellOf) -> None:
    cell = cell_of("method=qdiffusion", "inspection.rows=4")
    for role, stage in cell.stages.items():
        need = need_of(stage, cell.config)
        assert need.unknown == (("what it measures with",) if role in ("ssim", "distance") else ())
        measures = role in cell.stages.keys() - cell.made.keys() and not role.startswith("features")
        assert measures or role in ("size", "coverage", "calibration") or total(need.device) > 0, role


def test_steps_that_change_layers_one_by_one_are_known(cell_of: CellOf) -> None:
    cell = cell_of("method=svdquant", "inspection.rows=0")
    found = {role: need_of(stage, cell.config) for role, stage in cell.stages.items() if role in ("smooth", "low_rank")}
    assert len(found) == 2
    for role, need in found.items():
        (part,) = (part for part in need.device if "candidates" in part.what)
        assert not need.unknown, role
        assert part.bytes > 0
        assert part.option == "sampling.batch"


def test_needs_follow_the_options_that_are_to_be_lowered(cell_of: CellOf) -> None:
    def taken(role: str, *options: str) -> int:
        cell = cell_of("method=qdiffusion", *options)
        need = need_of(cell.stages[role], cell.config)
        return total(need.device) + total(need.host)

    assert taken("samples", "sampling.batch=32") > 2 * taken("samples", "sampling.batch=8")
    assert taken("scales", "recon.batch=64", "recon.heldout=2") > 2 * taken("scales", "recon.batch=4")
    assert taken("trajectory", "protocol.steps=8") > taken("trajectory", "protocol.steps=4")


def test_rows_of_a_walk_are_no_need_of_the_device(cell_of: CellOf) -> None:
    few, many = (cell_of("method=qdiffusion", f"calib.rows={rows}") for rows in (4, 8))
    one, two = (need_of(cell.stages["weights"], cell.config) for cell in (few, many))
    assert two.rows == 2 * one.rows > 0
    assert total(two.device) - total(one.device) < two.rows / 100


def test_two_networks_are_built_where_blocks_are_learned(cell_of: CellOf) -> None:
    cell = cell_of("method=qdiffusion")
    parts = {part.what for part in need_of(cell.stages["scales"], cell.config).device}
    assert {"quantized network", "full-precision network"} <= parts


def test_what_is_refused_names_stage_bytes_and_option() -> None:
    need = Need((Part("network", 10**9), Part("a pass of 64 rows", 8 * 10**9, "sampling.batch", 64)))
    (line,) = misfits("samples", need, CUDA, Room(Share(5e9, "free on the GPU here"), Share(64e9, "free here")))
    assert line == ("samples: takes 9.0 GB on the GPU (a pass of 64 rows 8.0, network 1.0), free on the GPU here 5.0; lower "
                    "sampling.batch=64: about 32 would fit")  # fmt: skip
    assert list(misfits("samples", need, CUDA, Room(Share(9e9), Share(None)))) == []
    assert list(misfits("samples", need, CUDA, Room(Share(None), Share(None)))) == []
    (line,) = misfits("samples", need, CPU, Room(Share(None), Share(9e8, "free here")))
    assert "of the host's memory" in line and "it takes a larger machine" in line


@pytest.mark.parametrize("launcher", [[], ["-m"], ["-m", "hydra/launcher=local"]])
def test_no_work_begins_where_it_does_not_fit(
    launcher: list[str], qdexp: Command, full_machine: Callable[[float], None], executed: Callable[..., list[str]]
) -> None:
    full_machine(0.0001)
    code, _, err = qdexp(*launcher, "method=ptq")
    assert code == 1 and "samples: takes 0.0 GB of the host's memory" in err and "lower sampling.batch=8" in err
    assert executed() == []


def test_jobs_that_share_a_machine_have_a_part_of_it_each(
    cell_of: CellOf, planned_on: Callable[[str], None], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(places, "free_host", lambda: 60 * 10**9)
    monkeypatch.setattr(places, "free_on_gpus", lambda: 80 * 10**9)
    cluster = cell_of("method=fp").config.cluster
    place = Here(jobs=6, on_gpu=2)
    room = place.room(CUDA, cluster, "samples")
    assert (room.device.bytes, room.host.bytes) == (40e9, 10e9)
    assert place.told(CUDA, cluster) == "40.0 GB free on the GPU here for each of 2 jobs, 10.0 GB free here for each of 6 jobs"
    passing = Part("a pass of 64 rows", 48 * 10**9, "sampling.batch", 64)
    (line,) = misfits("samples", Need((passing,)), CUDA, room)
    assert line == ("samples: takes 48.0 GB on the GPU (a pass of 64 rows 48.0), free on the GPU here for each of 2 jobs 40.0; "
                    "lower sampling.batch=64: about 53 would fit; or lower hydra.launcher.jobs_per_gpu=2")  # fmt: skip
    (line,) = misfits("samples", Need((Part("network", 48 * 10**9),)), CPU, place.room(CPU, cluster, "samples"))
    assert line.endswith("free here for each of 6 jobs 10.0; lower hydra.launcher.jobs=6")
    assert place.told(CPU, cluster) == "10.0 GB free here for each of 6 jobs"
    alone = Here(jobs=1).room(CUDA, cluster, "samples")
    assert (alone.device.bytes, alone.host.bytes, alone.device.option) == (80e9, 60e9, None)


def test_the_jobs_of_a_launcher_are_held_against_their_part(qdexp: Command, full_machine: Callable[[float], None]) -> None:
    full_machine(0.5)
    arguments = ("-m", "method=ptq", "hydra.launcher.dry=true")
    alone = qdexp(*arguments)[1]
    assert "memory   0.5 GB free here\n" in alone
    shared = qdexp(*arguments, "hydra/launcher=local", "hydra.launcher.jobs=50")[1]
    assert "memory   0.0 GB free here for each of 50 jobs\n" in shared
    assert "no room" not in alone
    assert re.search(
        r"^no room  features: .*, free here for each of 50 jobs 0\.0; lower hydra\.launcher\.jobs=50$", shared, re.M
    )


def test_gpus_are_asked_by_a_process_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert free_on_gpus() is None  # there is none, and that is no error


def test_what_is_there_needs_no_room(finished: CellOf, full_machine: Callable[[float], None]) -> None:
    cell = finished("method=fp")
    full_machine(0)
    memory.require([cell], Store(cell.out), Here())


def test_jobs_on_a_cluster_are_held_against_what_they_ask_for(
    cell_of: CellOf, planned_on: Callable[[str], None], full_machine: Callable[[float], None]
) -> None:
    planned_on("cuda")
    full_machine(0)
    cell = cell_of("method=ptq", "device=auto", "+cluster.stages.samples={memory_gb: 1.00001}", "cluster.gpu_memory_gb=80")
    with pytest.raises(UserError) as error:
        memory.require([cell], Store(cell.out), OnCluster())
    assert str(error.value).startswith("samples: takes 0.0 GB of the host's memory")
    assert "cluster.stages.samples.memory_gb=1.00001 leaves 0.0" in str(error.value)
    cell = cell_of("method=ptq", "device=auto", "cluster.gpu_memory_gb=1.0001")
    with pytest.raises(UserError, match=r"on the GPU .* cluster\.gpu_memory_gb=1\.0001 leaves 0\.0; lower sampling\.batch=8"):
        memory.require([cell], Store(cell.out), OnCluster())
    cell = cell_of("method=ptq", "device=auto")
    memory.require([cell], Store(cell.out), OnCluster())


def test_who_reads_a_quick_stage_makes_it(cell_of: CellOf) -> None:
    cell = cell_of("method=qdiffusion")
    assert memory.kinds(cell, cell.stages["samples"]) == {"samples"}
    assert memory.kinds(cell, cell.stages["calibration"]) >= {"weights"}
    assert memory.kinds(cell, cell.stages["fid"]) == {"record"}


def test_a_plan_tells_each_stage(small: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    sweep_command(["plan", *small, "method=qdiffusion", "sampling.batch=512", "hydra/launcher=slurm", "cluster.device=cuda",
                   "device=auto", "cluster.gpu_memory_gb=1.1"])  # fmt: skip
    out = capsys.readouterr().out
    assert "memory   GPUs of 1.1 GB (cluster.gpu_memory_gb), jobs with unknown memory (cluster.stages)" in out
    assert re.search(r"^ +samples +0\.\d +\d\.\d +\S+  a pass of 512 rows 0\.\d", out, flags=re.MULTILINE)
    assert re.search(r"^no room  samples: takes .* lower sampling.batch=512: about \d+ would fit$", out, flags=re.MULTILINE)


@pytest.mark.parametrize("kind", [torch.OutOfMemoryError, MemoryError])
def test_memory_that_runs_out_is_told_with_what_was_planned(
    kind: type[Exception], cell_of: CellOf, monkeypatch: pytest.MonkeyPatch
) -> None:
    cell = cell_of("method=qdiffusion")

    def fail(*_: object) -> None:
        raise kind("CUDA out of memory. Tried to allocate 2.00 GiB.")

    monkeypatch.setattr(LearnScales, "apply", fail)
    with pytest.raises(
        UserError, match=r"^scales: CUDA out of memory; planned were 0\.0 GB of the host's memory \(.*\); lower "
    ):
        cell.run()
    record = read(cell.out, cell.name)
    assert record is not None and record["error"]["stage"] == "scales" and "memory.host_gb" in record["error"]["message"]
    assert Store(cell.out).has(cell.stages["weights"].entry)  # what is finished is kept


def test_a_trajectory_is_recorded_in_the_host_s_memory(cell_of: CellOf, planned_on: Callable[[str], None]) -> None:
    planned_on("cuda")
    cell = cell_of("method=qdiffusion", "device=auto")
    stage = cell.stages["trajectory"]
    assert isinstance(stage, TrajectoryStage)
    (recorded,) = (part for part in need_of(stage, cell.config).host if part.option)
    assert recorded.bytes == 2 * 2 * 4 * cell.config.protocol.steps * 8 * 28 * 28
