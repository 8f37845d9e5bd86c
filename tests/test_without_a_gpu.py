"""Every stage on CUDA tensors without values, see ``fake_cuda``: all on one device, few waits, few kernels. Learning by
gradients is left out: autograd asks for a driver."""

from collections import Counter
from collections.abc import Callable
from typing import Any

import pytest
import torch
from fake_cuda import fake_cuda
from torch import Tensor, nn

from qdexp import lightning, machine, meter
from qdexp.cell import Cell
from qdexp.quant import MinMax, Scheme
from qdexp.quant.affine import qparams_from_range
from qdexp.quant.gptq import InputMoments, gptq
from qdexp.quant.ranges import estimate
from qdexp.quant.scheme import PerChannel
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
