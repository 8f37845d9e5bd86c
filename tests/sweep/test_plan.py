"""From cells to jobs."""

import re
from collections.abc import Callable
from dataclasses import replace

import pytest

from qdexp.cell import Cell
from qdexp.models.describe import describe
from qdexp.store import Store
from qdexp.sweep.jobs import RECORD, Node
from qdexp.sweep.plan import hours, macs, passes, plan

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]


def kinds(nodes: list[Node]) -> dict[str, int]:
    return {kind: sum(one.kind == kind for one in nodes) for kind in {one.kind for one in nodes}}


def test_shared_stages_are_planned_once(cell_of: CellOf) -> None:
    cells = [cell_of(f"method={method}") for method in ("fp", "ptq", "timestep_aware", "qdiffusion")]
    nodes = plan(cells, Store(cells[0].out), parts=1)
    assert kinds(nodes) == {"samples": 4, "trajectory": 2, "weights": 1, "act": 2, "scales": 1, "curves": 3, RECORD: 4}
    names = [one.id for one in nodes]
    assert len(names) == len(set(names))
    for place, one in enumerate(nodes):
        assert set(one.needs) <= set(names[:place])
    (last,) = (one for one in nodes if one.id == f"{RECORD}-{cells[3].name}")
    stages = cells[3].stages
    assert set(last.needs) == {stages[role].entry for role in ("trajectory", "weights", "scales", "heldout", "curves",
                                                               "full_precision", "samples")}  # fmt: skip


def test_parts(cell_of: CellOf) -> None:
    cell = cell_of("method=fp")  # 20 images in batches of 8
    for parts, expected in ((2, 2), (3, 3), (100, 3)):
        drawing = [one for one in plan([cell], Store(cell.out), parts) if one.kind == "samples"]
        assert [(one.part, one.parts) for one in drawing] == [(part, expected) for part in range(expected)]
        assert len({one.id for one in drawing}) == expected


def test_what_is_in_the_store_is_no_job(cell_of: CellOf) -> None:
    cell_of("method=ptq").run()
    cells = [cell_of("method=ptq"), cell_of("method=timestep_aware")]
    nodes = plan(cells, Store(cells[0].out), parts=1)
    assert kinds(nodes) == {"act": 1, "curves": 1, "samples": 1, RECORD: 1}
    assert next(one for one in nodes if one.kind == "act").needs == ()
    cells[0].record.unlink()
    assert kinds(plan(cells[:1], Store(cells[0].out), parts=1)) == {RECORD: 1}


@pytest.mark.parametrize(
    ("method", "quant", "jobs"),
    [
        *(("ptq", quant, [last]) for quant, last in (("w4a8", "act"), ("w4a32", "weights"), ("w32a8", "act"))),
        ("reconstruction", "w4a8", ["weights", "scales"]),
        *(("qdiffusion", quant, jobs) for quant, jobs in (("w4a8", ["weights", "scales"]), ("w4a32", ["weights"]))),
        ("qdiffusion", "w32a8", ["scales"]),
    ],
)
def test_of_the_steps_those_that_learn_take_a_job_and_the_last(
    cell_of: CellOf, method: str, quant: str, jobs: list[str]
) -> None:
    cell = cell_of(f"method={method}", f"quant={quant}")
    nodes = plan([cell], Store(cell.out), parts=1)
    steps = {one.slot for one in cell.steps}
    assert [one.kind for one in nodes if one.kind in steps] == jobs
    assert {one.kind for one in nodes} - steps <= {"trajectory", "samples", "curves", RECORD}


def test_a_quick_step_that_ends_another_cell_takes_one_job_for_all(cell_of: CellOf) -> None:
    """Were it made by its readers, those of the cell that it ends would each wait for, or repeat, it."""
    cells = [cell_of(f"quant={quant}") for quant in ("w4a8", "w4a6", "w4a32")]
    for order in (cells, cells[::-1]):
        nodes = plan(order, Store(cells[0].out), parts=1)
        assert kinds(nodes) == {"samples": 4, "trajectory": 2, "weights": 1, "act": 2, "curves": 3, RECORD: 3}
        weights = cells[0].stages["weights"].entry
        assert all(weights in one.needs for one in nodes if one.kind == "act")


def test_the_work_of_a_stage_is_what_goes_through_the_network(cell_of: CellOf) -> None:
    cell = cell_of("method=qdiffusion", "inspection.rows=4")
    found = {role: passes(cell.config, stage) for role, stage in cell.stages.items()}
    iterations = {"weights": 4, "scales": 2}  # of 4 rows, forward and backward; and both networks pass the 8 rows on
    assert {role: found[role] for role in iterations} == {role: 16 + 3 * 4 * count for role, count in iterations.items()}
    assert found["samples"] == 24 * 4  # 20 images in batches of 8, 4 steps
    assert found["trajectory"] == 16 * 4 and found["curves"] == 2 * 8 * 4
    assert found["layers"] == 4 * (1 + len(describe(cell.config.model).order)) and found["activations"] == 2 * 4 * 4
    assert {found[role] for role in ("calibration", "coverage", "fid")} == {0}
    one = describe(cell.config.model).macs
    assert macs(cell.config, cell.stages["samples"]) == 96 * one
    cluster = replace(cell.config.cluster, tflops=2.0)
    assert hours(3600e12, cluster) == 1 and hours(None, cluster) is None and hours(1.0, cell.config.cluster) is None


def test_guidance_asks_twice(cell_of: CellOf, conditional: str) -> None:
    once, twice = (
        cell_of(conditional, "model=tiny_dit", "method=reconstruction", "protocol=quick", f"protocol.guidance={guidance}")
        for guidance in (1, 2)
    )
    for role in ("samples", "curves", "trajectory", "act"):
        assert passes(twice.config, twice.stages[role]) == 2 * passes(once.config, once.stages[role])


def test_a_plan_tells_the_work_of_all_that_is_missing(qdexp: Command, cell_of: CellOf) -> None:
    arguments = ("-m", "method=fp", "hydra.launcher.dry=true")
    cell = cell_of("method=fp")
    work = f"{96 * describe(cell.config.model).macs / 1e12:.2g} TMACs"
    out = qdexp(*arguments)[1]
    assert f"\ncost     {work}; about " in out and "hours" not in out
    out = qdexp(*arguments, "cluster.tflops=1e-6")[1]
    time = f"{2 * 96 * describe(cell.config.model).macs / 1e6 / 3600:.2g}"
    assert f"\ncost     {work}, {time} hours at cluster.tflops=1e-06; about " in out
    assert re.search(rf"^ +stage .* TMACs +hours  .*\n +samples .* {time}  ", out, re.M)
