"""The curves of a cell, computed again step by step."""

from collections.abc import Callable

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor

from qdexp.cell import Cell
from qdexp.models import checkpoint
from qdexp.sampling.noise import generators
from qdexp.sampling.sampler import Sampler
from qdexp.store import Store


def ratio(value: Tensor, truth: Tensor) -> float:
    return float((value - truth).double().square().sum() / truth.double().square().sum())


@torch.inference_mode()
def test_teacher_forced_and_free_running_errors(finished: Callable[..., Cell]) -> None:
    """Of 8 trajectories in shards of 3, at the timesteps of the sampler."""
    cell = finished("sampling.batch=3", "method=timestep_aware")
    store = Store(cell.out)
    found = checkpoint.load(store.folder(cell.stages["act"].entry) / "checkpoint")
    shards = [load_file(path) for path in sorted(store.folder(cell.stages["heldout"].entry).glob("shard-*"))]
    x_t, eps = (torch.cat([shard[name] for shard in shards]) for name in ("x_t", "eps"))
    curves = cell.run()["curves"]
    sampler = Sampler(cell.config.model, cell.config.protocol)
    assert curves["timestep"] == sampler.timesteps
    forced = [ratio(found(x_t[:, i], torch.tensor(t))[0], eps[:, i]) for i, t in enumerate(curves["timestep"])]
    assert curves["teacher_forced"] == pytest.approx(forced, rel=1e-3)
    seen: list[Tensor] = []
    sampler.run(found, generators("evaluation", 0, range(8)), torch.device("cpu"), observe=lambda _, x, __: seen.append(x))
    assert curves["free_running"] == pytest.approx([ratio(x, x_t[:, i]) for i, x in enumerate(seen)], rel=0.05)
