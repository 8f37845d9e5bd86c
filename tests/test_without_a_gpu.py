"""Every stage on CUDA tensors without values, see ``fake_cuda``: all on one device, few waits, few kernels.

Learning by gradients cannot be run so: autograd's engine asks the driver for CUDA's context. That its iterations wait for
nothing is seen in two halves: a step goes forward and back without values, so it reads none; and all that goes round in a real
walk, Lightning and the optimizer with it, asks for no more values in six iterations than in two.
"""

from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from fake_cuda import CountedWaits, fake_cuda
from torch import Tensor, nn

from benchmarks.memory import learned_networks, numbers
from qdexp import lightning, machine, meter
from qdexp.cell import Cell
from qdexp.config import BlockWise, Model, ScaleLearning, WeightLearning
from qdexp.errors import UserError
from qdexp.footprint import walks
from qdexp.footprint.passes import batch_of
from qdexp.quant import MinMax, Scheme
from qdexp.quant.affine import qparams_from_range
from qdexp.quant.dynamic import quantize_dynamic
from qdexp.quant.gptq import InputMoments, gptq
from qdexp.quant.ranges import estimate
from qdexp.quant.scheme import PerChannel, PerGroup
from qdexp.recon import learning, progress
from qdexp.recon.walk import Walk
from qdexp.stages.base import Sharded, Stage
from qdexp.store import Store

GPU = torch.device("cuda:0")
SAVED = {"packed.py: _narrow", "checkpoint.py: <dictcomp>", "checkpoint.py: <setcomp>", "steps.py: keep"}
WAITS = {
    "weights": {"network.py: check", *SAVED},
    "act": SAVED,
    "activations": {"inspection.py: of"},
    "layers": {"inspection.py: _ratio", "inspection.py: layer_errors"},
    "features_fashion-cnn": {"features.py: <genexpr>"},
    "distance": {"distance.py: <listcomp>"},
    "ssim": {"similarity.py: <listcomp>"},
}
"""Where the host may wait for the device: once a layer or a batch, and never within a pass."""


@pytest.fixture
def driverless(monkeypatch: pytest.MonkeyPatch) -> None:
    """What asks for a driver is left out: Lightning, and measuring."""

    def predict(module: Any, loader: Any, device: torch.device, write: Callable[[int, Any], object] | None = None) -> list[Any]:
        module.to(device)
        with torch.no_grad():
            found = [module(batch.to(device) if isinstance(batch, Tensor) else batch) for batch in loader]
        for number, one in enumerate(found if write is not None else ()):
            write(number, one)  # type: ignore[misc]
        return [] if write is not None else found

    def measure(_: torch.device, work: Callable[[], object]) -> dict[str, float]:
        work()
        return {"seconds": 0.0, "peak_memory_mb": 0.0}

    monkeypatch.setattr(lightning, "predict", predict)
    monkeypatch.setattr(machine, "kind", lambda _: "fake")
    monkeypatch.setattr(meter, "measure", measure)


def onto_gpu(stages: dict[str, Stage]) -> None:
    """The keys stay those of the CPU, where they were made."""
    for stage in stages.values():
        assert stage.key
    for stage in stages.values():
        object.__setattr__(stage, "device", GPU)
        onto_gpu(stage.inputs)


@pytest.mark.usefixtures("driverless")
@pytest.mark.parametrize("model", ["tiny", "tiny_dit", "tiny_cross"])
def test_every_stage(cell_of: Callable[..., Cell], request: pytest.FixtureRequest, model: str) -> None:
    more = [] if model == "tiny" else ["protocol.guidance=2", request.getfixturevalue("conditional")]
    rows = 2 if model == "tiny_dit" else 0  # each layer alone: the longest stages
    cell = cell_of(*more, f"model={model}", "quantizer=linear", "protocol.steps=2", "protocol.n=10", f"inspection.rows={rows}")
    onto_gpu(cell.stages)
    launches: dict[str, int] = {}
    for role, stage in cell.stages.items():
        with fake_cuda() as gpu:
            stage.make(Store(cell.out))
        launches[role] = gpu.launches
        if isinstance(stage, Sharded) or role == "curves":
            batches = len(stage.shards) if isinstance(stage, Sharded) else 1
            assert gpu.waits == {"sampler.py: require_finite": batches}, role
        else:
            assert gpu.waits.keys() <= WAITS.get(role, set()), role
    assert launches["samples"] < 2.5 * launches["full_precision"], "a quantizer is a kernel or two, a check and a mask"


@pytest.fixture
def architecture(cell_of: Callable[..., Cell], request: pytest.FixtureRequest) -> Model:
    """A U-Net, a DiT or a U-Net with cross-attention, all tiny."""
    more = [] if request.param == "tiny" else [request.getfixturevalue("conditional")]
    return cell_of(*more, f"model={request.param}").config.model


def walk_of(model: Model, kind: str, iterations: int, folder: Path) -> CountedWaits:
    """Learns two blocks of the model, on the CPU."""
    network, full = learned_networks(model, kind, torch.device("cpu"))
    rows = numbers(batch_of(network, model, 8))
    blocks = {name: has for name, has in walks.blocks(model).items() if not isinstance(full.get_submodule(name), nn.Linear)}
    some = {name: blocks[name] for name in list(blocks)[1:3]}
    folder.mkdir()
    if kind == walks.WEIGHTS:
        options: BlockWise = WeightLearning(batch=4, heldout=4, start="nearest", iterations=iterations, rate=0.1)
    else:
        options = ScaleLearning(batch=4, heldout=4, iterations=iterations, rate=0.01)
    walk = Walk(network, full, some, options, seed=0, folder=folder)
    with CountedWaits() as asked:
        walk.learn_weights([rows]) if kind == walks.WEIGHTS else walk.learn_scales([rows])
    return asked


KINDS = [walks.WEIGHTS, walks.SCALES]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["tiny", "tiny_dit", "tiny_cross"], indirect=True)
def test_a_step_of_learning_reads_no_value(architecture: Model, kind: str) -> None:
    assert walks.walked(architecture, kind, 4, "nearest").step > 0


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("architecture", ["tiny"], indirect=True)
def test_iterations_of_learning_wait_for_nothing(architecture: Model, kind: str, tmp_path: Path) -> None:
    two, six = (walk_of(architecture, kind, iterations, tmp_path / f"{iterations}") for iterations in (2, 6))
    assert six.operations > 1.3 * two.operations
    assert six.waits == two.waits


@pytest.mark.parametrize("architecture", ["tiny"], indirect=True)
def test_learning_that_waits_is_found_out(architecture: Model, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    with monkeypatch.context() as patch, pytest.raises(UserError, match=r"item\(\) cannot be called"):
        relative = learning.relative
        patch.setattr(learning, "relative", lambda error, target: relative(error, target) if target.item() > 0 else error)
        walks.walked(architecture, walks.SCALES, 3, "nearest")
    monkeypatch.setattr(progress, "LOG_SECONDS", 0.0)
    two, six = (walk_of(architecture, walks.SCALES, iterations, tmp_path / f"{iterations}") for iterations in (2, 6))
    assert six.waits > two.waits


def test_second_order_rounding_waits_for_nothing() -> None:
    x, weight, scheme = torch.randn(12, 6), torch.randn(4, 6), Scheme(4, PerChannel(0))
    qparams = qparams_from_range(*estimate(weight, scheme, MinMax()), scheme)
    with fake_cuda() as gpu:
        layer = nn.Linear(6, 4).to(GPU)
        moments = InputMoments(layer, 12, seed=0)
        moments.observe(x.to(GPU), x.to(GPU))
        found = gptq(weight.to(GPU), type(qparams)(*(one.to(GPU) for one in qparams)), scheme, moments.total, moments.shift)
    assert found.is_cuda
    assert not gpu.waits


def test_two_devices_in_one_operation_are_found_out() -> None:
    with fake_cuda() as gpu:
        here, there = torch.ones(3), torch.ones(3, device=GPU)
        with pytest.raises(RuntimeError, match="device"):
            here + there
        assert not gpu.waits
        assert bool((there + there).isfinite().all())
        assert gpu.waits == Counter({"nothing of this package": 1})


@pytest.mark.parametrize("scale", ["bfloat16", "e8m0", "e4m3"])
def test_grids_computed_at_the_call_wait_for_nothing(scale: str) -> None:
    """Groups of 16 along the channels of images, of which the last one is short, and along the features of tokens."""
    number = {"bfloat16": "int", "e8m0": "e4m3", "e4m3": "e2m1"}[scale]
    bits = 8 if number == "e4m3" else 4
    with fake_cuda() as gpu:
        for shape, axis in (((2, 40, 7, 7), 1), ((2, 9, 32), -1)):
            scheme = Scheme(bits, PerGroup(16, axis), number != "int", "dynamic", number, scale)
            for x in (torch.ones(shape, device=GPU), torch.ones(shape, device=GPU, dtype=torch.float16)):
                found = quantize_dynamic(x, scheme)
                assert (found.shape, found.dtype, found.device) == (x.shape, x.dtype, GPU)
    assert not gpu.waits
