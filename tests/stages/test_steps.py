"""Steps as stages: who shares one, what of it ends in the quantized network, and what a killed process leaves."""

import errno
import json
import signal
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
from processes import Python
from torch import Tensor, nn

from qdexp import files
from qdexp.cell import Cell
from qdexp.errors import UserError
from qdexp.methods import Step, Work
from qdexp.methods.recipe import NamedStep
from qdexp.models import checkpoint
from qdexp.quant.network import activation_quantizers, quantized_layers
from qdexp.recon.walk import Walk
from qdexp.stages.steps import StepStage
from qdexp.store import Store

CellOf = Callable[..., Cell]
Command = Callable[..., tuple[int, str, str]]
Executed = Callable[..., list[str]]


def made(cell: Cell) -> dict[str, Path]:
    """The cell's stages up to the quantized network, in its store; by their names."""
    record = cell.run()
    return {name: cell.out / "store" / f"{cell.stages[name].name}-{key}" for name, key in record["keys"].items()}


def layers(folder: Path) -> dict[str, Any]:
    """The quantized layers of the checkpoint in a stage's folder."""
    return dict(quantized_layers(checkpoint.load(folder / "checkpoint")))


def test_all_activation_bits_share_one_rounding(cell_of: CellOf, executed: Executed) -> None:
    folders = [made(cell_of("method=qdiffusion", f"quant={quant}")) for quant in ("w4a32", "w4a8", "w4a4")]
    assert len({folder["weights"] for folder in folders}) == 1
    assert not {"act", "scales"} & folders[0].keys()
    assert len({folder["scales"] for folder in folders[1:]}) == 2
    assert sum(entry.startswith("weights-") for entry in executed()) == 1
    rounded = layers(folders[0]["weights"])
    for folder in folders[1:]:
        network = layers(folder["scales"])
        assert rounded.keys() == network.keys()
        for name, layer in network.items():
            assert torch.equal(layer.weight_int, rounded[name].weight_int)
            assert torch.equal(layer.weight, rounded[name].weight)
        assert list(activation_quantizers(checkpoint.load(folder["scales"] / "checkpoint")))
    assert not list(activation_quantizers(checkpoint.load(folders[0]["weights"] / "checkpoint")))


def test_the_seed_moves_second_order_rounding(cell_of: CellOf) -> None:
    """Of the calibration rows and of the values that it looks at: here the latter alone, on the same rows."""
    cell = cell_of("quantizer=gptq", "protocol.n=10")
    stage, store = cell.stages["weights"], Store(cell.out)
    assert isinstance(stage, StepStage)
    found = [layers(one.make(store).folder) for one in (stage, replace(stage, seed=1))]
    assert any(not torch.equal(one.weight_int, found[1][name].weight_int) for name, one in found[0].items())


def test_what_the_stages_leave(cell_of: CellOf) -> None:
    """No file of a single block; what learning did in the record, by what was learned."""
    cell = cell_of("method=qdiffusion", "recon.weights.iterations=20", "recon.weights.rate=0.1")
    folders, record = made(cell), cell.run()
    for stage in ("split", "weights", "act", "scales"):
        left = {path.name for path in folders[stage].iterdir()}
        assert left == {"checkpoint", "manifest.json", *(["blocks.json"] if stage in ("weights", "scales") else [])}
    learned = record["reconstruction"]
    assert learned.keys() == {"weights", "scales"}
    assert len(learned["weights"]["block"]) == 18
    assert any(learned["weights"]["kept"])


@pytest.mark.parametrize(
    ("quant", "layers", "learned"),
    [
        ("w32a8", "", {"scales": 18}),
        ("w4a32", "", {"weights": 18}),
        ("w4a8", "{*: {weight_bits: 32}, conv_in: {weight_bits: 4}}", {"weights": 1, "scales": 18}),
    ],
)
def test_what_is_left_in_floating_point_is_not_learned(
    cell_of: CellOf, quant: str, layers: str, learned: dict[str, int]
) -> None:
    options = [f"quant.layers={layers}"] if layers else []
    record = cell_of("method=reconstruction", f"quant={quant}", *options).run()
    assert {name: len(columns["block"]) for name, columns in record["reconstruction"].items()} == learned


def test_methods_that_learn_nothing_say_nothing(cell_of: CellOf) -> None:
    cell = cell_of("method=timestep_aware")
    assert cell.run()["reconstruction"] == {}
    assert not cell.learns
    nearest = ("quantizer.steps.weights._target_=qdexp.methods.Nearest", "quantizer.steps.scales=null")
    assert not cell_of("method=qdiffusion", *nearest).learns


def test_killed_in_the_middle_it_goes_on_to_the_same_bytes(qdexp: Command, small: list[str], tmp_path: Path) -> None:
    options = ["method=qdiffusion", "recon.weights.iterations=10"]
    arguments = [option for option in small if not option.startswith("recon.weights.iterations=")] + options
    process = Python(["-m", "qdexp", *arguments], tmp_path)
    deadline = time.monotonic() + 120
    while len(list((tmp_path / "out" / "store").glob(".work-weights-*/.weights-*.safetensors"))) < 3:
        assert process.poll() is None, process.wait().stderr
        assert time.monotonic() < deadline
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait().returncode == -signal.SIGKILL
    (work,) = (tmp_path / "out" / "store").glob(".work-weights-*")
    assert not (work / "checkpoint").exists()

    assert qdexp(*options)[0] == 0
    assert qdexp(*options, f"out={tmp_path / 'undisturbed'}")[0] == 0
    for stage in ("weights", "scales"):
        resumed, whole = (next(tmp_path.glob(f"{out}/store/{stage}-*")) for out in ("out", "undisturbed"))
        assert (resumed / "blocks.json").read_bytes() == (whole / "blocks.json").read_bytes()
        tensors = f"checkpoint/{checkpoint.TENSORS}"
        assert files.sha256(resumed / tensors) == files.sha256(whole / tensors)
        costs = json.loads((resumed / "manifest.json").read_text())["costs"]
        assert ("resumed" in costs) == (stage == "weights")
        assert not list(resumed.rglob(".*"))


def test_stopped_once_all_is_learned_nothing_is_learned_again(cell_of: CellOf, monkeypatch: pytest.MonkeyPatch) -> None:
    digest, learned = files.sha256, Counter[str]()

    def full_disk(path: Path) -> str:
        if ".work-weights" in str(path):
            raise OSError(errno.ENOSPC, "No space left on device")
        return digest(path)

    def learn(walk: Walk, *arguments: Any) -> Any:
        learned.update([arguments[3]])
        return once(walk, *arguments)

    once = Walk._learn
    monkeypatch.setattr(Walk, "_learn", learn)
    cell = cell_of("method=reconstruction", "quant=w4a32")
    with monkeypatch.context() as full:
        full.setattr(files, "sha256", full_disk)
        with pytest.raises(OSError, match="No space left"):
            cell.run()
    cell.run()
    assert len(learned) == learned.total() == 18


class Forgets(nn.Module):
    """Keeps what it has drawn, by a generator of its own, where nothing finds it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 1, 3, padding=1)
        generator = torch.Generator()
        generator.seed()
        self.drawn = [torch.randn(1, 1, 28, 28, generator=generator, device="cpu")]

    def forward(self, x: Tensor, t: Tensor) -> tuple[Tensor]:
        return (self.conv(x + self.drawn[0].to(x.device)),)


def test_a_network_that_its_checkpoint_does_not_hold_is_refused(cell_of: CellOf) -> None:
    config = cell_of("model.weights=random", "quant=w4a32").config
    cell = Cell(replace(config, model=replace(config.model, network={"_target_": f"{__name__}.Forgets"})))
    with pytest.raises(UserError, match=r"^model\.network: Forgets computes something else when it is read"):
        cell.stages["weights"].make(Store(cell.out))
    assert not list((cell.out / "store").glob("weights-*"))


@dataclass(frozen=True, kw_only=True)
class Look(Step):
    """Changes nothing."""

    seen: ClassVar[list[Work]] = []

    def apply(self, work: Work) -> None:
        self.seen.append(work)


@pytest.mark.parametrize(("guidance", "least"), [(1.0, 2), (2.0, 4)])
def test_with_guidance_steps_see_every_timestep_under_both_conditions(
    cell_of: CellOf, tmp_path: Path, guidance: float, least: int
) -> None:
    """Of 2 timesteps: the fewest rows that a step may look at."""
    cell = cell_of()
    rows = cell.stages["calibration"].make(Store(cell.out)).folder
    config = replace(cell.config, protocol=replace(cell.config.protocol, guidance=guidance))
    stage = StepStage.of(config, NamedStep("look", f"{__name__}.Look", Look()), before=None, last=False)
    stage.compute(tmp_path, {"calibration": rows})
    assert Look.seen.pop().least == least
