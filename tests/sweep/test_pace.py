"""How long a sweep takes, told before it begins."""

import re
from collections.abc import Callable

import pytest

from qdexp.cell import Cell
from qdexp.footprint.places import Here, OnCluster
from qdexp.store import Store
from qdexp.sweep import pace
from qdexp.sweep.pace import estimate
from qdexp.sweep.plan import passes, plan


@pytest.fixture
def cells(cell_of: Callable[..., Cell]) -> list[Cell]:
    return [cell_of("method=fp"), cell_of("method=timestep_aware")]


def test_where_no_record_tells_a_batch_does(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    """A hundredth of a second a row of the network, in as many processes as there are."""
    monkeypatch.setattr(pace, "timed", lambda forward, device: 0.01 * len(forward()[0]))
    store = Store(cells[0].out)
    stages = {stage.entry: (cell.config, stage) for cell in cells for stage in cell.stages.values()}
    factors = {"act": pace.SEARCHED, "curves": pace.QUANTIZED}
    seconds = 0.01 * sum(
        passes(config, stage)
        * (pace.QUANTIZED if stage is cells[1].stages["samples"] else factors.get(stage.name, 1.0))
        for config, stage in stages.values()
    )  # fmt: skip
    nodes = plan(cells, store, parts=1)
    told = f"about {seconds:.0f} s of computing, a guess by a batch that the network was given just now; about"
    assert told in estimate(cells, nodes, store, Here())
    assert f" of computing, {seconds / 2:.0f} s in 2 processes, a guess by " in estimate(cells, nodes, store, Here(jobs=2))


def test_a_cluster_and_large_networks_are_not_tried(cells: list[Cell], monkeypatch: pytest.MonkeyPatch) -> None:
    store = Store(cells[0].out)
    nodes = plan(cells, store, parts=1)
    assert "; time unknown, " in estimate(cells, nodes, store, OnCluster())
    monkeypatch.setattr(pace, "LARGEST", 10)
    assert "; time unknown, " in estimate(cells, nodes, store, Here())


def test_records_tell_more_than_a_batch(cells: list[Cell], finished: Callable[..., Cell]) -> None:
    finished("method=fp")
    store = Store(cells[0].out)
    told = estimate(cells, plan(cells, store, parts=1), store, Here())
    assert re.search(r"; about \d+ s of computing, a guess by 1 earlier record, none of them tells of act, .*curves", told)
