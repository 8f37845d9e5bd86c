"""Latency and memory of a forward pass: what is counted, which machine it is of, and what stands beside it in a table."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from torch import Tensor, nn

from qdexp import machine
from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.metrics.memory import peak_bytes
from qdexp.record import read_records
from qdexp.report.comparison import compare
from qdexp.report.evidence import Evidence
from qdexp.store import Store

CellOf = Callable[..., Cell]
CPU = torch.device("cpu")
MEASURED = ("metric=[standard,latency]", "metric.latency.repetitions=5", "metric.latency.warmup=1")
LATENCY = {"latency_ms", "latency_iqr_ms", "latency_batch_ms", "latency_batch_iqr_ms"}
MEMORY = {"memory_mb", "memory_batch_mb", "memory_network_mb"}


class Wide(nn.Module):
    """From [n, 100] to [n, 1000] and back to [n, 10], in float32."""

    def __init__(self) -> None:
        super().__init__()
        self.up, self.down = nn.Linear(100, 1000, bias=False), nn.Linear(1000, 10, bias=False)
        self.offset = torch.ones(1, 1000)  # no buffer

    def forward(self, x: Tensor) -> Tensor:
        wide = self.up(x)
        return self.down(wide + self.offset.expand(len(x), -1))  # wide lives until the end


class InPlace(Wide):
    def forward(self, x: Tensor) -> Tensor:
        return self.down(self.up(x.view(-1, 100)).relu_().add_(self.offset))


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.no_grad])
@pytest.mark.parametrize(("kind", "wide"), [(Wide, 2), (InPlace, 1)])
def test_the_peak_of_a_pass_is_that_of_the_tensors_that_are_alive_at_once(mode: Any, kind: type[Wide], wide: int) -> None:
    network, x = kind(), torch.randn(8, 100)
    with mode():
        found = [peak_bytes(lambda: network(x), CPU) for _ in range(2)]
    assert found == [8 * (wide * 1000 + 10) * 4] * 2


def test_tensors_that_stay_count_to_the_end_and_views_never() -> None:
    kept: list[Tensor] = []
    x = torch.zeros(1000)
    with torch.inference_mode():
        assert peak_bytes(lambda: kept.extend(x + 1 for _ in range(3)), CPU) == 3 * 4000
        assert peak_bytes(lambda: kept.extend([x.view(10, 100), x[3:], kept[0].flatten()]), CPU) == 0


def changed(one: Cell, other: Cell) -> set[str]:
    return {role for role, stage in one.stages.items() if other.stages[role].key != stage.key} & {"latency", "memory"}


@pytest.fixture
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``elsewhere(processor)``: from then on this is another machine."""

    def move(processor: str) -> None:
        other = {**machine._host(), "processor": processor}
        monkeypatch.setattr(machine, "_host", lambda: other)

    return move


@pytest.mark.parametrize("method", ["method=fp", "method=ptq"])
def test_a_timing_depends_on_the_network_the_batch_and_the_machine_alone(
    cell_of: CellOf, elsewhere: Callable[[str], None], method: str
) -> None:
    base = cell_of(method, *MEASURED)
    _ = base.keys
    for option in ("protocol.n=30", "protocol.noise_seed=3", "protocol.heldout=9", "inspection.rows=4"):
        assert changed(base, cell_of(method, *MEASURED, option)) == set(), option
    assert changed(base, cell_of(method, *MEASURED, "sampling.batch=4")) == {"latency", "memory"}
    assert changed(base, cell_of(method, *MEASURED[:1], "metric.latency.repetitions=6")) == {"latency"}
    backend = "backend._target_=backend_helpers.Scaled"
    assert changed(base, cell_of(method, *MEASURED, backend)) == ({"latency", "memory"} if base.quantized else set())
    assert cell_of(method).key == base.key
    elsewhere("another")
    assert changed(base, cell_of(method, *MEASURED)) == {"latency"}


def test_a_timing_is_taken_once_a_machine(
    cell_of: CellOf, executed: Callable[..., list[str]], elsewhere: Callable[[str], None]
) -> None:
    def run(*options: str) -> tuple[dict[str, Any], list[str]]:
        before, cell = len(executed()), cell_of("method=ptq", *options)
        cell.run()
        return read_records([cell.record])[0], [entry.partition("-")[0] for entry in executed()[before:]]

    run()
    record, made = run(*MEASURED)
    assert made == ["latency", "memory"]
    assert record["metrics"].keys() >= LATENCY | MEMORY
    assert all(record["metrics"][key] > 0 for key in (LATENCY | MEMORY) - {"latency_iqr_ms", "latency_batch_iqr_ms"})
    assert record["metrics"]["memory_batch_mb"] == pytest.approx(8 * record["metrics"]["memory_mb"], rel=0.1)
    assert record["measures"]["latency"]["made_with"] == {"machine": machine.line(CPU), "batch": "8"}
    assert run(*MEASURED) == (record, [])
    elsewhere("another")
    there, made = run(*MEASURED)
    assert made == ["latency"]
    assert "another" in there["measures"]["latency"]["made_with"]["machine"]
    full = cell_of("method=fp", *MEASURED).run()
    assert compare([full, there], Evidence(cell_of().out))
    with pytest.raises(UserError) as caught:
        compare([full, record], Evidence(cell_of().out))
    assert all(one["measures"]["latency"]["made_with"]["machine"] in str(caught.value) for one in (record, there))
    assert "\n" not in str(caught.value)


def test_a_network_is_timed_as_its_backend_has_made_it(cell_of: CellOf) -> None:
    """One that sleeps takes longer than it sleeps."""
    slow = cell_of("method=ptq", *MEASURED, "backend._target_=backend_helpers.Sleeping").run()["metrics"]
    assert min(slow["latency_ms"], slow["latency_batch_ms"]) > 50


@pytest.mark.parametrize("launcher", ["local", "slurm"])
def test_jobs_take_no_timings(qdexp: Callable[..., tuple[int, str, str]], launcher: str) -> None:
    code, _, err = qdexp("-m", "method=ptq", f"hydra/launcher={launcher}", *MEASURED)
    assert code == 1
    assert "qdexp: metric.latency: belongs to the machine that measures it" in err
    assert "latency and memory" in err


class Labelled(nn.Module):
    """A network of a user's own class, which no example of a condition is known for."""

    seen: ClassVar[list[list[int]]] = []

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)

    def forward(self, x_t: Tensor, t: Tensor, class_labels: Tensor) -> Tensor:
        self.seen.append(class_labels.tolist())
        return self.conv(x_t)


LABELLED = f"""\
name: labelled
weights: random
shape: [1, 28, 28]
schedule: {{num_train_timesteps: 1000}}
condition: {{_target_: qdexp.models.conditioning.Classes, classes: 3, empty: 3}}
network: {{_target_: {__name__}.Labelled}}
"""


def test_a_conditional_network_is_timed_with_conditions_of_the_images_where_no_others_are_known(
    cell_of: CellOf, tmp_path: Path
) -> None:
    """One call is one call, whatever the guidance."""
    folder = tmp_path / "own" / "model"
    folder.mkdir(parents=True)
    (folder / "labelled.yaml").write_text(LABELLED)
    own = (f"hydra.searchpath=[file://{folder.parent}]", "model=labelled", "method=fp", "protocol.guidance=2")
    cell = cell_of(*own, "metric=[latency]", *MEASURED[1:])
    Labelled.seen.clear()
    cell.stages["latency"].make(Store(cell.out))
    assert Labelled.seen == [[0]] * 6 + [[0, 1, 2, 0, 1, 2, 0, 1]] * 6
