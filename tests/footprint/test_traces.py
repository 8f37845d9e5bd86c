"""What is traced on the meta device is what computing takes, as torch's profiler finds on the CPU."""

import copy
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from hydra import compose, initialize_config_dir
from torch import Tensor, nn
from torch.utils import _pytree as pytree

from benchmarks.memory import filled, learned_networks, live_bytes, numbers, training_steps
from qdexp.config import Config, Model
from qdexp.config.learning import BlockWise, WeightLearning
from qdexp.footprint import layerwise, passes, walks
from qdexp.footprint.walks import SCALES, WEIGHTS
from qdexp.live import Live
from qdexp.methods import smooth
from qdexp.methods.base import Work
from qdexp.methods.low_rank import LowRank
from qdexp.methods.smooth import Smooth
from qdexp.models.describe import describe
from qdexp.paths import conf_folder
from qdexp.quant.affine import QParams
from qdexp.quant.formats import ActFormat
from qdexp.quant.gptq import gptq
from qdexp.quant.network import LayerBits, convert, quantized_layers, set_activation_mode
from qdexp.quant.scheme import PerChannel, Scheme
from qdexp.recon.walk import Walk
from qdexp.sampling.conditions import Asked

ROWS = 32
EMBEDDED = ["ddpm_fashion", "dit_fashion"]


def config_of(name: str, *options: str) -> Config:
    with initialize_config_dir(str(conf_folder()), version_base="1.3"):
        return Config.of(compose("config", [f"model={name}", *options]))


def model_of(name: str) -> Model:
    return config_of(name).model


@pytest.mark.parametrize("quantized", [False, True])
@pytest.mark.parametrize("name", EMBEDDED)
def test_a_pass(name: str, quantized: bool) -> None:
    model = model_of(name)
    meta = describe(model).network if quantized else passes.full(model)
    assert passes.pass_bytes(model, ROWS, 1, quantized, False) == pytest.approx(pass_of(meta, model), rel=0.15)


@pytest.mark.parametrize("act", [ActFormat(4, "int", "per_group", 16, scale="bfloat16"), ActFormat(8, "e4m3", "per_token")])
def test_a_pass_with_grids_of_groups(act: ActFormat) -> None:
    model, act = model_of("ddpm_fashion"), replace(act, time="dynamic", symmetric=act.number != "int")
    found = describe(model)
    meta = copy.deepcopy(found.network)
    convert(meta, dict.fromkeys(found.order, LayerBits(32, act.bits or 32)), found.sites, act=act)
    assert passes.pass_bytes(model, ROWS, 1, True, True) == pytest.approx(pass_of(meta, model), rel=0.15)


def pass_of(meta: nn.Module, model: Model) -> int:
    """What it takes where there are numbers."""
    set_activation_mode(meta, "on")
    network = filled(meta)
    x_t, t, *conditions = numbers(passes.batch_of(meta, model, ROWS))

    @torch.no_grad()
    def once() -> Tensor:
        inputs = (x_t.clone(), t.clone(), *(pytree.tree_map(torch.clone, one) for one in conditions))
        return Asked(tuple(conditions or [{}])).estimate(network, *inputs[:2])

    return live_bytes(once)


def test_guidance_holds_one_estimate_beside_the_pass_of_the_other() -> None:
    model = model_of("dit_fashion")
    one, two = (passes.pass_bytes(model, ROWS, branches, False, False) for branches in (1, 2))
    assert one < two < one + 4 * 4 * ROWS * 28 * 28  # and another label


def test_cuda_rounds_with_more() -> None:
    model = model_of("dit_fashion")
    assert passes.pass_bytes(model, ROWS, 1, True, True) > passes.pass_bytes(model, ROWS, 1, True, False)
    assert passes.pass_bytes(model, ROWS, 1, False, True) == passes.pass_bytes(model, ROWS, 1, False, False)


@pytest.mark.parametrize("kind", [WEIGHTS, SCALES])
@pytest.mark.parametrize("name", EMBEDDED)
def test_a_training_step_of_the_largest_block(name: str, kind: str) -> None:
    model, batch = model_of(name), 8
    network, full = learned_networks(model, kind, torch.device("cpu"))
    rows = numbers(passes.batch_of(network, model, batch))
    measured = max(training_steps(kind, network, full, walks.blocks(model), rows))
    assert walks.walked(model, kind, batch, "nearest").step == pytest.approx(measured, rel=0.15)


@pytest.mark.parametrize("shape", [(64, 512), (700, 300)])
def test_rounding_by_second_order(shape: tuple[int, int]) -> None:
    outputs, columns = shape
    weight = torch.randn(outputs, columns)
    grid = QParams(torch.full((outputs,), 0.1), torch.full((outputs,), 128, dtype=torch.int32))

    def once() -> None:
        moments, shift = torch.eye(columns)[None].clone(), torch.zeros(1, outputs, columns)
        gptq(weight, grid, Scheme(8, PerChannel(0)), moments, shift)

    assert walks.second_order(1, columns, outputs) == pytest.approx(live_bytes(once), rel=0.15)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "block", "start", "rows"),
    [
        ("ddpm_fashion", "up_blocks.2.resnets.1", "nearest", 192),
        ("ddpm_fashion", "up_blocks.2.resnets.1", None, 192),
        ("dit_fashion", "transformer_blocks.1", None, 512),
    ],
)
def test_rows_of_a_walk(name: str, block: str, start: str | None, rows: int, tmp_path: Path) -> None:
    """By how much the walk takes more of twice the rows, at a block where it takes the most, which alone is learned: from few
    rows learning itself takes more than they do. 60 s in all."""
    model, batch, peaks = model_of(name), 8, list[int]()
    for count in (rows, 2 * rows):
        network, full = filled(walks.rounded(model)), filled(passes.full(model))
        for own, layer in quantized_layers(network):
            layer.weight_scheme = layer.weight_scheme if own.startswith(f"{block}.") else None
        folder = tmp_path / f"{count}"
        folder.mkdir()
        batches = [numbers(passes.batch_of(full, model, batch)) for _ in range(count // batch)]
        with Live("cpu") as live:  # stand-ins for rows are on the meta device
            if start is None:
                Walk(network, full, walks.blocks(model), BlockWise(heldout=batch), 0, folder).round_weights(batches)
            else:
                options = WeightLearning(batch=batch, heldout=batch, start="nearest", iterations=1, rate=0.1)
                Walk(network, full, walks.blocks(model), options, 0, folder).learn_weights(batches)
        peaks.append(live.peak)
    planned = walks.walked(model, WEIGHTS, batch, start).row
    assert planned == pytest.approx((peaks[1] - peaks[0]) / rows, rel=0.05)


@pytest.mark.parametrize(
    ("name", "before", "step"),
    [
        (EMBEDDED[0], [], Smooth(alpha=0.5)),
        (EMBEDDED[0], [], Smooth(rank=16)),
        (EMBEDDED[1], [], Smooth()),
        (EMBEDDED[1], [Smooth(alpha=0.5)], LowRank(rank=16, rounds=3)),
    ],
)
def test_steps_that_change_layers_one_by_one(
    name: str, before: Sequence[Smooth], step: Smooth | LowRank, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(smooth, "SEARCHED", smooth.SEARCHED[-3:])
    config = config_of(name, "quant=int4_g64")
    network = filled(passes.full(config.model))
    example, batch = (numbers(passes.batch_of(network, config.model, count)) for count in (1, ROWS))
    work = Work(
        network=network,
        quant=config.quant,
        model=config.model,
        example=example,
        batches=[batch],
        least=1,
        seed=0,
        folder=Path(),
        build=nn.Module,
    )
    step.layers(work)  # traces the network
    for one in before:
        one.apply(work)
    with Live("cpu") as live:
        step.apply(work)
    planned = layerwise.search_bytes(config.model, step, config.quant, ROWS, bool(before))
    assert planned == pytest.approx(live.peak, rel=0.15)
