"""A protocol, and the tiny U-Net as a model that it samples from."""

from pathlib import Path
from typing import Any

import pytest
import torch
from diffusers import UNet2DModel

from qdexp.config import Model, Protocol
from qdexp.models import checkpoint
from qdexp.quant import MinMax, convert, observe_activations, plan_bits, quantize_weights
from qdexp.quant.adapter import Adapter
from qdexp.quant.affine import quantize as nearest
from qdexp.quant.blocks import first_row


@pytest.fixture
def tiny_model(tiny_architecture: dict[str, Any]) -> Model:
    schedule = {"num_train_timesteps": 1000, "beta_schedule": "linear", "beta_start": 1e-4, "beta_end": 0.02}
    return Model("tiny", "nowhere", [1, 8, 8], tiny_architecture, schedule)


@pytest.fixture
def ddim() -> Protocol:
    scheduler = {"_target_": "diffusers.DDIMScheduler", "clip_sample": False}
    return Protocol(name="tiny", n=10, noise_seed=0, heldout=1, steps=5, scheduler=scheduler, extractor="", reference="")


@pytest.fixture
def solver() -> Protocol:
    scheduler = {"_target_": "diffusers.DPMSolverMultistepScheduler", "algorithm_type": "dpmsolver++", "solver_order": 2}
    return Protocol(name="tiny", n=10, noise_seed=0, heldout=1, steps=5, scheduler=scheduler, extractor="", reference="")


@pytest.fixture
def saved_w4a8(tiny_unet: UNet2DModel, tiny_architecture: dict[str, Any], tmp_path: Path) -> Path:
    """A checkpoint of the tiny U-Net, channels last, with 4-bit weights and 8-bit activations."""
    generator = torch.Generator().manual_seed(1)
    rows = [(torch.randn(8, 1, 8, 8, generator=generator), torch.full((8,), t)) for t in (999, 500, 0)]
    network = tiny_unet.to(memory_format=torch.channels_last)
    adapter = Adapter(network, first_row(rows[0]))
    convert(network, plan_bits(network, adapter.layers, weight_bits=4, act_bits=8), adapter.sites)
    quantize_weights(network, MinMax(), nearest)
    observe_activations(network, rows, MinMax())
    checkpoint.save(tmp_path / "checkpoint", network, tiny_architecture)
    return tmp_path / "checkpoint"
